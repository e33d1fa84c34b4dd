"""LiteRT's map of widths and learned codes: what is planned and refused, and what is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testing import family_checkpoints
from testing.checkpoints import source, tie
from testing.drive import drive, facts_of, section
from testing.plans import planned, quantizing
from testing.shapes import phi3

from phipipe.backends import litert, rules
from phipipe.backends.base import Job
from phipipe.errors import TargetError
from phipipe.hub import take
from phipipe.planning.plan import Plan

DRIVER = Path(__file__).parent / "map_driver.py"
TINY = ("quantize={}", "backend=litert")
LEARNED = (*TINY, "weights={learn: round}")


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("litert-maps")
    source(root / "source")
    tie(source(root / "tied", tie_word_embeddings=True))
    drive(python_of("torch"), Path(family_checkpoints.__file__), root, "Phi-2")
    (root / "phi-2").rename(root / "Phi-2")
    text = take.ASSETS / "stories" / "evaluation.txt"
    drive(python_of("torch"), "-m", "testing.reference", root, text, "200", "source")
    return facts_of(python_of("litert"), DRIVER, root)


def mapped(text: str, *sets: str) -> Plan:
    return planned(*TINY, f"quantize.map={{{text}}}", *sets)


def test_the_step_holds_bits_and_groups_of_the_named_matrices() -> None:
    text = '"layers.0.*": {bits: 4}, lm_head: {bits: 8}, embed_tokens: {bits: 16}'
    plan = mapped(text, "quantize.group_size=64")
    found = quantizing(plan)["widths"]
    assert found.pop("layers.0.mlp.down_proj") == [4, 64]
    assert (found.pop("lm_head"), found.pop("embed_tokens")) == ([8, -1], [16, -1])
    assert len(found) == 3
    assert {one.name: one.size_bytes for one in plan.matrices}["lm_head"] == 2304 * (256 + 4)


def test_a_recipe_without_a_map_reads_no_checkpoint() -> None:
    (step,) = [step for step in planned(*TINY).steps if step.name == "quantize"]
    assert step.needs == {"model": "convert"}
    assert set(step.params) == {"bits", "group_size", "scheme"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lm_head: {bits: 6}", "no 6 bits, but 4, 8 and 16"),
        ("lm_head: {bits: 8, group_size: 32}", "no groups of 32 at 8 bits, but -1"),
        ("lm_head: {bits: 4, group_size: 16}", "no groups of 16 at 4 bits"),
        ("lm_head: INT4", "no type `INT4`"),
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
        (
            ("quantize.scheme=weight_only", "quantize.map={lm_head: {bits: 4, group_size: 64}}"),
            "groups of 64, which LiteRT runs with `scheme: dynamic` alone",
        ),
        (("weights={learn: round}", "quantize.scheme=weight_only"), "`scheme: dynamic` alone"),
        (("weights={learn: round}", "quantize.group_size=64"), "`quantize.group_size` would"),
        (("weights={learn: signround}",), "takes none below 0"),
        (
            ("weights={learn: round}", "quantize.map={lm_head: {bits: 8, group_size: 32}}"),
            r"weights are learned by row \(-1\) at 8 bits",
        ),
        (
            ("weights={learn: round}", "quantize.map={lm_head: {bits: 4, group_size: 256}}"),
            r"in groups of 32, 64, 128, or by row \(-1\)",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(sets: tuple[str, ...], words: str) -> None:
    with pytest.raises(TargetError, match=words):
        planned(*TINY, *sets)


def test_matrices_that_norms_are_folded_into_are_not_learned() -> None:
    def told(model_type: str, learn: str | None) -> list[str]:
        recipe: Any = SimpleNamespace(
            precision="int4",
            backend="litert",
            weights=SimpleNamespace(learn=learn, group_size=32),
            evaluate=SimpleNamespace(window=512),
            measure=SimpleNamespace(prompt_tokens=128, new_tokens=64),
        )
        shape = phi3({"model_type": model_type}, parameters=10_000_000)
        return [one.rule for one in rules.check(Job(recipe, litert.Options(), shape), litert.RULES)]

    assert told("phi", "gptq") == ["R19"]
    assert told("phi", None) == told("phi3", "gptq") == []


def test_a_map_of_floats_takes_any_scheme() -> None:
    found = mapped("lm_head: {bits: 16}", "quantize.scheme=weight_only")
    assert quantizing(found)["widths"] == {"lm_head": [16, -1]}


@pytest.mark.parametrize("learn", ["round", "gptq"])
def test_learned_weights_have_scales_above_0_and_8_bits_by_row(learn: str) -> None:
    plan = planned(*TINY, f"weights={{learn: {learn}, group_size: 64}}")
    steps = {step.name: step for step in plan.steps}
    assert list(steps).index("weights") < list(steps).index("quantize")
    assert steps["weights"].params["positive"]
    assert steps["weights"].params["widths"]["lm_head"] == [8, 256]
    assert steps["weights"].params["widths"]["layers.0.mlp.down_proj"] == [4, 64]
    assert steps["quantize"].params["widths"]["lm_head"] == [8, -1]
    assert steps["quantize"].params["widths"]["layers.0.mlp.down_proj"] == [4, 64]
    needs = {"model": "convert", "source": "source", "weights": "weights"}
    assert steps["quantize"].needs == needs


def test_other_runtimes_keep_scales_of_both_signs() -> None:
    plan = planned("quantize={}", "backend=openvino", "weights={learn: round}")
    (step,) = [step for step in plan.steps if step.name == "weights"]
    assert "positive" not in step.params
    assert step.params["widths"]["lm_head"] == [8, 32]


def test_the_scheme_tells_of_map_and_learning() -> None:
    def words(learn: str | None, **options: Any) -> str:
        weights = SimpleNamespace(learn=learn, group_size=64)
        recipe: Any = SimpleNamespace(precision="int4", weights=weights)
        return litert.scheme(Job(recipe, litert.Options.model_validate(options)))

    head = {"lm_head": {"bits": 8}}
    assert words(None, map=head) == "int4 in groups of 32, dynamic, map"
    assert words("gptq") == "int4 in groups of 64, dynamic, gptq learned"


def test_every_matrix_has_the_width_that_the_map_gives_it(facts: dict[str, Any]) -> None:
    found = section(facts, "mixed")
    assert found["count"] == 22
    assert found["kinds"] == {
        "embed_tokens": ["INT4", 32, "EMBEDDING_LOOKUP"],
        "layers.0.mlp.down_proj": ["FLOAT16", 0, "DEQUANTIZE"],
        "layers.0.mlp.gate_up_proj": ["INT4", 32, "FULLY_CONNECTED"],
        "layers.1.mlp.down_proj": ["INT4", 64, "FULLY_CONNECTED"],
        "layers.1.self_attn.o_proj": ["INT8", -1, "FULLY_CONNECTED"],
        "layers.2.self_attn.qkv_proj": ["INT4", -1, "FULLY_CONNECTED"],
        "lm_head": ["INT8", -1, "FULLY_CONNECTED"],
    }
    assert found["kld"] < 3e-3
    assert found["planned"] <= found["built"] < found["planned"] + 500_000  # the graph itself


def test_a_tied_head_is_the_embedding(facts: dict[str, Any]) -> None:
    found = section(facts, "others")["tied"]
    assert found["kinds"] == [
        ["embed_tokens", "INT8", "EMBEDDING_LOOKUP"],
        ["embed_tokens", "INT8", "FULLY_CONNECTED"],
    ]


def test_weights_that_become_floats_before_use_have_a_map_too(facts: dict[str, Any]) -> None:
    kinds = section(facts, "others")["floats"]["kinds"]
    assert ["lm_head", "FLOAT16", "DEQUANTIZE"] in kinds
    assert ["layers.3.mlp.down_proj", "INT8", "DEQUANTIZE"] in kinds
    assert len(kinds) == 6


def test_matrices_that_norms_were_folded_into_are_known(facts: dict[str, Any]) -> None:
    found = section(facts, "others")["folded"]
    names = {name for name, *_ in found["kinds"]}
    assert names == {
        *(f"layers.0.self_attn.{part}_proj" for part in "qkvo"),
        *(f"layers.{i}.mlp.down_proj" for i in range(2)),
    }


@pytest.mark.parametrize("name", ["source", "tied"])
def test_learned_codes_are_stored_raw_and_computed(facts: dict[str, Any], name: str) -> None:
    found = section(facts, "learned")[name]
    assert found["exact"] == found["names"]
    assert found["kld"] < 1e-3  # of activations, which kernels round to 8 bits


def test_matrices_of_any_shape_decode_and_compute_exactly(facts: dict[str, Any]) -> None:
    assert section(facts, "any_shapes") == {"stored": 30, "looked up": 30, "computed": 30}


def test_groups_of_zeros_get_a_scale_that_kernels_take(facts: dict[str, Any]) -> None:
    for off in section(facts, "zeros").values():
        assert max(off) < 0.02


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("codes", "does not hold the learned weights as they are"),
        ("scales", "does not hold the learned weights as they are"),
        ("lost", "does not hold the learned"),
        ("bits", "was asked for in 8 bits"),
        ("group", "is stored as INT4 with groups of 32"),
        ("missing", "no matrix that holds"),
        ("sign", "scales below 0, which XNNPACK refuses"),
        ("shape", "the shape of another model"),
        ("width", "8 bits in groups of 256, and not 4"),
        ("original", "no matrix of the checkpoint"),
    ],
)
def test_a_file_that_holds_something_else_is_found(
    facts: dict[str, Any], change: str, words: str
) -> None:
    kind, message, _ = section(facts, "failures")[change]
    assert (kind, words in message) == ("StepFailed", True), message


def test_the_file_as_asked_passes(facts: dict[str, Any]) -> None:
    assert section(facts, "failures")["fine"] == ["nothing raised", "", ""]
