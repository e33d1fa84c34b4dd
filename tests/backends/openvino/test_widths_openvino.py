"""OpenVINO's map of widths and learned codes: what is planned and refused, and what is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testing.drive import facts_of, section
from testing.places import RECIPES
from testing.plans import planned, quantizing

from phipipe.backends import openvino
from phipipe.backends.base import Job
from phipipe.errors import TargetError
from phipipe.planning.plan import Plan

DRIVER = Path(__file__).parent / "widths_driver.py"
NPU = RECIPES / "phi35-npu-int4.yaml"
TINY = ("quantize={}", "backend=openvino")
ON_NPU = ("source={builtin: tiny-phi3}", "evaluate.text={builtin: stories}")
LEARNED = (*TINY, "weights={learn: round}")


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("openvino") / "widths"
    return facts_of(python_of("openvino"), DRIVER, folder)


def mapped(text: str, *sets: str) -> Plan:
    return planned(*TINY, f"quantize.map={{{text}}}", *sets)


def test_the_step_holds_bits_and_groups_of_the_named_matrices() -> None:
    text = '"layers.0.*": {bits: 4}, lm_head: {bits: 8}, embed_tokens: {bits: 16}'
    found = quantizing(mapped(text, "quantize.group_size=64"))["widths"]
    assert found.pop("layers.0.mlp.down_proj") == [4, 64]
    assert (found.pop("lm_head"), found.pop("embed_tokens")) == ([8, -1], [16, -1])
    assert len(found) == 3


def test_a_recipe_without_a_map_keeps_its_parameters() -> None:
    assert {"widths", "map"}.isdisjoint(quantizing(planned(*TINY)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lm_head: {bits: 6}", "no 6 bits, but 4, 8 and 16"),
        ("lm_head: {bits: 4, group_size: 16}", "no groups of 16 at 4 bits"),
        ("lm_head: Q6_K", "no type `Q6_K`"),
        ('"layers.*.down": {bits: 8}', "matches no matrix"),
        ('"*": {bits: 8}, lm_head: {bits: 4}', "decides nothing"),
    ],
)
def test_a_map_that_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(TargetError, match=words.replace("*", r"\*")):
        mapped(text)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (('quantize.map={"layers.*": {bits: 4, group_size: 32}}',), "groups of 128 or -1"),
        (('quantize.map={"layers.0.*": {bits: 8}}',), "4 bits in every layer"),
        (('quantize.map={"layers.0.*": {bits: 16}}',), "4 bits in every layer"),
        (
            ("quantize={}", "weights={learn: round}"),
            "with groups of 32, only with groups of 128 or a",
        ),
    ],
)
def test_an_npu_has_its_own_groups_and_one_width(sets: tuple[str, ...], words: str) -> None:
    with pytest.raises(TargetError, match=words):
        planned(*ON_NPU, *sets, path=NPU)


def test_an_npu_takes_what_it_can_store() -> None:
    head = "lm_head: {bits: 8}"
    rounded = planned(
        *ON_NPU, "weights={}", f"quantize={{group_size: -1, map: {{{head}}}}}", path=NPU
    )
    assert quantizing(rounded)["widths"] == {"lm_head": [8, -1]}
    for size in (128, -1):
        weights = f"weights={{learn: round, group_size: {size}}}"
        learned = quantizing(planned(*ON_NPU, "quantize={}", weights, path=NPU))["widths"]
        assert learned["layers.0.mlp.down_proj"] == [4, size]
        assert learned["lm_head"] == [8, size]


@pytest.mark.parametrize("learn", ["round", "gptq"])
def test_learned_weights_come_before_the_step_that_stores_them(learn: str) -> None:
    plan = planned(*TINY, f"weights={{learn: {learn}}}")
    names = [step.name for step in plan.steps]
    assert names.index("weights") < names.index("quantize")
    (step,) = [step for step in plan.steps if step.name == "quantize"]
    assert step.needs == {"model": "convert", "weights": "weights"}
    assert step.params["symmetric"]
    assert step.params["widths"]["lm_head"] == [8, 32]


@pytest.mark.parametrize(
    "option",
    ["awq=true", "ratio=0.8", "backup=none", "all_layers=true", "group_size=64"],
)
def test_options_that_round_are_refused_where_weights_are_learned(option: str) -> None:
    name = option.partition("=")[0]
    with pytest.raises(TargetError, match=f"`quantize.{name}` says how OpenVINO rounds"):
        planned(*LEARNED, f"quantize.{option}")


def test_the_scheme_tells_of_map_and_learning() -> None:
    def words(learn: str | None, size: int = 32, **options: Any) -> str:
        weights = SimpleNamespace(learn=learn, group_size=size)
        recipe: Any = SimpleNamespace(precision="int4", weights=weights)
        return openvino.scheme(Job(recipe, openvino.Options.model_validate(options)))

    head = {"lm_head": {"bits": 8}}
    assert words(None, map=head) == "int4 asymmetric, groups of 128, map"
    assert words("gptq") == "int4 symmetric, groups of 32, gptq learned"
    assert words("gptq", -1) == "int4 symmetric, a scale per row, gptq learned"
    assert words("gptq", map=head) == "int4 symmetric, groups of 32, gptq learned, map"


def test_a_map_that_widens_layers_is_not_uniform() -> None:
    def uniform(pattern: str, bits: int) -> bool:
        chosen = openvino.Options.model_validate({"map": {pattern: {"bits": bits}}})
        return openvino.FACE.is_uniform(chosen)

    assert not uniform("layers.*.mlp.down_proj", 8)
    assert uniform("layers.*.mlp.down_proj", 4)
    assert uniform("lm_head", 8)


@pytest.mark.parametrize("preset", ["symmetric", "asymmetric", "int8"])
def test_a_preset_and_the_map_that_spells_it_give_the_same_files(
    facts: dict[str, Any], preset: str
) -> None:
    assert section(facts, "spelled")[preset]


def test_every_matrix_has_the_width_that_the_map_gives_it(facts: dict[str, Any]) -> None:
    found = section(facts, "mixed")
    assert found["kinds"] == {
        "embed_tokens": ["i8", 32],
        "layers.0.mlp.down_proj": ["f16", 0],
        "layers.1.mlp.down_proj": ["i4", 64],
        "layers.1.mlp.gate_up_proj": ["i4", 128],
        "lm_head": ["i8", 256],
    }
    assert found["kld"] < 2e-3
    assert found["planned"] == pytest.approx(found["built"], rel=0.03)


def test_plugins_keep_mapped_matrices_compressed(facts: dict[str, Any]) -> None:
    assert section(facts, "compiled") == {"i4": 18, "i8": 2, "f16": 2}


@pytest.mark.parametrize("case", ["learned", "direct"])
def test_learned_codes_are_stored_raw_and_compute_what_they_stand_for(
    facts: dict[str, Any], case: str
) -> None:
    assert section(facts, "learned")[case] < 1e-10


def test_a_tied_model_holds_its_learned_embedding_once(facts: dict[str, Any]) -> None:
    assert section(facts, "learned")["tied"] < 1e-10


@pytest.mark.parametrize("groups", ["rows", "wide"])
def test_the_npus_pipeline_runs_learned_weights(facts: dict[str, Any], groups: str) -> None:
    found = section(facts, "npu")[groups]
    assert found["kld"] < 1e-10
    assert found["gap_nats"] < 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("codes", "is not stored as it was learned"),
        ("scales", "is not stored as it was learned"),
        ("lost", "does not hold the learned"),
        ("width", "is stored as i4"),
        ("group", "a scale per 32 weights, not 64"),
        ("missing", "no matrix that holds"),
    ],
)
def test_a_file_that_holds_something_else_is_found(
    facts: dict[str, Any], change: str, words: str
) -> None:
    kind, message, _ = section(facts, "failures")[change]
    assert kind == "StepFailed"
    assert words in message
