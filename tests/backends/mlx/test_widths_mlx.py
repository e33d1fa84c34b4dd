"""MLX's map of widths and learned codes: what is planned and refused, and what is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testing.checkpoints import source, tie
from testing.drive import drive, facts_of, section
from testing.plans import planned, quantizing

from phipipe.backends import mlx
from phipipe.backends.base import Job
from phipipe.backends.mlx.sizes import MIXED
from phipipe.errors import TargetError
from phipipe.hub import take
from phipipe.planning.plan import Plan

DRIVER = Path(__file__).parent / "widths_driver.py"
TINY = ("quantize={}", "backend=mlx", "device=apple-silicon")
LEARNED = (*TINY, "weights={learn: round}")


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver found out, against logits of transformers."""
    root = tmp_path_factory.mktemp("mlx-widths")
    source(root / "source")
    source(root / "original")
    tie(source(root / "tied", tie_word_embeddings=True))
    torch = python_of("torch")
    for name, floats in (("source", ["layers.0.mlp.down_proj"]), ("tied", [])):
        folders = [root / name, root / f"{name}-lattice", root / f"{name}-dense"]
        drive(torch, "-m", "testing.hand_lattice", *folders, "32", *floats)
    text = take.ASSETS / "stories" / "evaluation.txt"
    names = ("original", "source-dense", "tied-dense")
    drive(torch, "-m", "testing.reference", root, text, "256", *names)
    return facts_of(python_of("mlx"), DRIVER, root)


def mapped(text: str, *sets: str) -> Plan:
    return planned(*TINY, f"quantize.map={{{text}}}", *sets)


@pytest.mark.parametrize(("options", "size"), [((), 64), (("quantize.group_size=128",), 128)])
def test_the_step_holds_bits_and_groups_of_the_named_matrices(
    options: tuple[str, ...], size: int
) -> None:
    text = 'lm_head: {bits: 6, group_size: 32}, embed_tokens: {bits: 16}, "layers.0.*": {bits: 3}'
    found = quantizing(mapped(text, *options))["widths"]
    assert found["layers.0.mlp.down_proj"] == [3, size]
    assert (found["lm_head"], found["embed_tokens"]) == ([6, 32], [16, 0])
    assert "layers.1.mlp.down_proj" not in found


def test_a_recipe_without_a_map_keeps_its_parameters() -> None:
    assert {"widths", "map"}.isdisjoint(quantizing(planned(*TINY)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lm_head: {bits: 8, group_size: -1}", "no groups of -1 at 8 bits, but 32, 64, 128"),
        ("lm_head: {bits: 8, group_size: 16}", "no groups of 16"),
        ("lm_head: q6", "no type `q6`"),
        ('"layers.*.down": {bits: 8}', "matches no matrix"),
        ('"*": {bits: 8}, lm_head: {bits: 4}', "decides nothing"),
    ],
)
def test_a_map_that_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        mapped(text)


def test_learned_weights_come_before_the_step_that_stores_them() -> None:
    plan = planned(*TINY, "weights={learn: gptq, group_size: 64}")
    names = [step.name for step in plan.steps]
    assert names.index("weights") < names.index("quantize")
    (step,) = [step for step in plan.steps if step.name == "quantize"]
    assert step.needs == {"model": "convert", "weights": "weights"}
    assert (step.params["bits"], step.params["group_size"]) == (4, 64)
    assert step.params["widths"]["lm_head"] == [8, 64]


@pytest.mark.parametrize("option", ["bits=6", "group_size=64", "mixed=mixed_4_6", "mode=mxfp4"])
def test_options_that_round_are_refused_where_weights_are_learned(option: str) -> None:
    name = option.partition("=")[0]
    with pytest.raises(TargetError, match=f"`quantize.{name}` says how mlx-lm rounds"):
        planned(*LEARNED, f"quantize.{option}")


def test_the_scheme_tells_of_map_and_learning() -> None:
    def words(learn: str | None, **options: Any) -> str:
        weights = SimpleNamespace(learn=learn, group_size=32)
        recipe: Any = SimpleNamespace(precision="int4", weights=weights)
        return mlx.scheme(Job(recipe, mlx.Options.model_validate(options)))

    head = {"lm_head": {"bits": 8}}
    assert words(None, map=head) == "4-bit affine, groups of 64, map"
    assert words("gptq") == "4-bit affine, groups of 32, gptq learned"
    assert words("gptq", map=head) == "4-bit affine, groups of 32, gptq learned, map"


@pytest.mark.parametrize("preset", ["int4", "6-bit", "int8", *MIXED])
def test_a_preset_and_the_map_that_spells_it_give_the_same_files(
    facts: dict[str, Any], preset: str
) -> None:
    assert section(facts, "spelled")[preset]


@pytest.mark.parametrize(
    ("case", "others", "last"),
    [("mixed", [4, 64], 4), ("over-mixed", [4, 64], 6), ("over-mxfp4", [4, 32], 4)],
)
def test_every_matrix_has_the_width_that_the_map_gives_it(
    facts: dict[str, Any], case: str, others: list[int], last: int
) -> None:
    found, size = section(facts, "maps")[case], others[1]
    assert found["down"] == [[16, 0], [6, 32], [6, 32]]
    assert found["qkv"] == [others, [3, size], [last, size]]
    assert found["ends"] == [[8, 128], [5, size]]
    assert found["kld"] < 3e-3
    planned, built = found["size"]
    assert planned == pytest.approx(built, rel=0.03)


@pytest.mark.parametrize("case", ["bfloat16", "float16", "direct", "tied"])
def test_learned_codes_are_stored_raw_and_compute_what_they_stand_for(
    facts: dict[str, Any], case: str
) -> None:
    assert section(facts, "learned")[case] < 1e-9


def test_mlx_makes_code_times_scale_of_any_codes(facts: dict[str, Any]) -> None:
    assert facts["random"] == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("codes", "is not stored as it was learned"),
        ("scales", "is not stored as it was learned"),
        ("lost", "do not hold the learned"),
        ("named", "no layer that holds `layers.9.mlp.up_proj` alone"),
    ],
)
def test_files_that_hold_something_else_are_found(
    facts: dict[str, Any], change: str, words: str
) -> None:
    found = section(facts, "failures")
    assert found["fine"][0] == "nothing raised"
    kind, message, _ = found[change]
    assert kind == "StepFailed"
    assert words in message
