"""Learned weights: each method against the one before, from the same text, twice, and cut short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.drive import facts_of, section

from phipipe.algorithms import learned
from phipipe.hub.take import BUILTIN_MODELS
from phipipe.models import checkpoints, linears
from phipipe.models.linears import linear_of

DRIVER = Path(__file__).parent / "learn_driver.py"


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return facts_of(python_of("torch"), DRIVER, tmp_path_factory.mktemp("learn"))


def test_each_method_is_closer_than_the_one_before(facts: dict[str, Any]) -> None:
    for name in ("errors", "divergence"):
        found = section(facts, name)
        assert found["gptq"] < found["search"] < found["round"], name
    assert facts["divergence"]["gptq"] < 0.6 * facts["divergence"]["round"]


def test_all_matrices_are_as_wide_as_asked(facts: dict[str, Any]) -> None:
    assert section(facts, "widths") == section(facts, "asked")


def test_a_second_run_gives_the_same_weights(facts: dict[str, Any]) -> None:
    assert facts["second"] == facts["digest"]


def test_a_run_that_was_cut_short_goes_on_and_ends_the_same(facts: dict[str, Any]) -> None:
    cut = section(facts, "cut")
    assert cut["left"] == ["part-00000.safetensors", "part-00001.safetensors"]
    assert cut["digest"] == facts["digest"]


def test_inputs_that_differ_from_the_originals_are_made_up_for(facts: dict[str, Any]) -> None:
    before, after = facts["moved"]
    assert after < 0.01 * before


def test_activations_that_are_no_numbers_are_told_by_layer(facts: dict[str, Any]) -> None:
    kind, message, _ = facts["nan"]
    assert kind == "StepFailed"
    assert "layer 2" in message


@pytest.mark.parametrize(
    ("case", "count"), [("round", 22), ("search", 22), ("evenly", 1), ("floats", 1)]
)
def test_the_codec_tells_of_rows_what_the_step_stores(
    facts: dict[str, Any], case: str, count: int
) -> None:
    assert section(facts, "codecs")[case] == [True] * count


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        ("model.layers.3.mlp.down_proj.weight", "layers.3.mlp.down_proj"),
        ("model.layers.0.self_attn.dense.weight", "layers.0.self_attn.o_proj"),
        ("model.layers.0.mlp.fc1.weight", "layers.0.mlp.up_proj"),
        ("lm_head.weight", "lm_head"),
        ("model.embed_tokens.weight", "embed_tokens"),
        ("model.norm.weight", None),
        ("model.layers.0.self_attn.q_norm.weight", None),
        ("model.layers.0.self_attn.q_proj.bias", None),
    ],
)
def test_matrices_have_one_name_each(tensor: str, name: str | None) -> None:
    assert linear_of(tensor) == name


def test_the_step_takes_a_text_only_where_it_learns_from_one() -> None:
    checkpoint = checkpoints.read(BUILTIN_MODELS["tiny-phi3"])
    sizes = dict.fromkeys(linears.shapes(checkpoint), (4, 32))
    plain = learned.step("round", sizes, checkpoint, 1000)
    assert "calibration" not in plain.needs
    assert "calibration" in learned.step("gptq", sizes, checkpoint, 1000).needs
    weights = sum(rows * columns for rows, columns in linears.shapes(checkpoint).values())
    assert plain.output_bytes == weights * 4.5 / 8
