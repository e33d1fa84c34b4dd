"""Learned weights: each method against the one before, from the same text, twice, and cut short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from testing.drive import facts_of, section
from testing.plans import planned

from phipipe.algorithms import learned
from phipipe.errors import TargetError
from phipipe.hub.take import BUILTIN_MODELS
from phipipe.models import checkpoints, linears
from phipipe.models.checkpoint import Checkpoint
from phipipe.models.linears import linear_of
from phipipe.recipe.learned import Weights

DRIVER = Path(__file__).parent / "learn_driver.py"
SIGNROUND = "weights={learn: signround}"


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


def test_scales_above_0_cost_a_little_and_are_learned_as_well(facts: dict[str, Any]) -> None:
    found = section(facts, "above 0")
    assert min(found["least"]) > 0
    assert found["widths"] == found["asked"]
    for name in ("errors", "divergence"):
        of = found[name]
        assert of["gptq"] < of["search"] < of["round"], name
        assert of["gptq"] < 1.5 * facts[name]["gptq"]
    assert max(found["round rows"], found["search rows"]) < 0.02


def test_all_matrices_are_as_wide_as_asked(facts: dict[str, Any]) -> None:
    assert section(facts, "widths") == section(facts, "asked")


def test_a_second_run_gives_the_same_weights(facts: dict[str, Any]) -> None:
    assert facts["second"] == facts["digest"]


def test_a_run_that_was_cut_short_goes_on_and_ends_the_same(facts: dict[str, Any]) -> None:
    cut = section(facts, "cut")
    assert cut["left"] == ["part-00000.safetensors", "part-00001.safetensors"]
    assert cut["digest"] == facts["digest"]


def test_signround_is_closer_than_rounding_and_the_lattices_scales_cost_it_little(
    facts: dict[str, Any],
) -> None:
    found = section(facts, "signround")
    divergence = found["divergence"]
    assert divergence["lattice"] < 1.05 * divergence["auto-round"]
    assert divergence["lattice"] < 0.95 * facts["divergence"]["round"]
    assert 0 < found["moved"] < 2.0**-7


def test_signround_learns_the_layers_and_the_rest_is_searched(facts: dict[str, Any]) -> None:
    found = section(facts, "signround")
    layers = [name for name in facts["asked"] if name.startswith("layers.")]
    assert found["learned"] == sorted(layers)
    assert found["as searched"] == [True, True]
    assert found["index"] == "signround"
    assert found["files"] == ["lattice.json", *(f"part-{i:05}.safetensors" for i in range(6))]


def test_signround_is_not_run_again_after_it_is_done_and_gives_the_same(
    facts: dict[str, Any],
) -> None:
    found = section(facts, "resumed")
    assert found["digest"] == found["whole"]
    assert found["widths"] == found["asked"]


def test_inputs_that_differ_from_the_originals_are_made_up_for(facts: dict[str, Any]) -> None:
    before, by_inputs, by_outputs = facts["moved"]
    assert by_inputs < 0.01 * before
    assert by_outputs == pytest.approx(by_inputs, rel=1e-3)


def test_products_of_many_columns_are_those_of_fp64(facts: dict[str, Any]) -> None:
    found = section(facts, "products")
    assert found["products"] < 1e-5
    assert found["divided"] < 1e-4


def test_the_originals_side_is_what_is_given_or_what_leaves_without_bias(
    facts: dict[str, Any],
) -> None:
    found = section(facts, "sides")
    assert set(found.values()) == {True}
    assert len(found) == 6


def test_scales_are_the_lattices_own(facts: dict[str, Any]) -> None:
    assert facts["scales"] is True


def test_another_number_of_threads_gives_weights_as_good(facts: dict[str, Any]) -> None:
    one, two = facts["threads"]
    assert two == pytest.approx(one, rel=0.25)


def test_a_table_that_is_embedding_and_head_stays_what_the_embedding_needs(
    facts: dict[str, Any],
) -> None:
    found = section(facts, "tied")
    assert found["gptq"] < 2 * found["search"]


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


@pytest.mark.parametrize(
    ("backend", "device"),
    [
        ("onnxruntime", "cpu-x86_64"),
        ("openvino", "intel-cpu"),
        ("llamacpp", "cpu-x86_64"),
        ("torch", "cpu-x86_64"),
        ("mlx", "apple-silicon"),
    ],
)
def test_weights_of_a_large_model_are_planned_whose_first_layers_are_proved(
    monkeypatch: pytest.MonkeyPatch, backend: str, device: str
) -> None:
    monkeypatch.setattr("phipipe.models.checkpoint.LARGE_PARAMETERS", 10**6)
    sets = (f"backend={backend}", f"device={device}", "precision=int4", "quantize={}")
    steps = {step.name: step for step in planned(*sets, "weights={learn: round}").steps}
    assert "slice-weights" not in steps
    assert "layers.4.mlp.down_proj" in steps["weights"].params["widths"]


def test_signround_plans_for_the_whole_model_and_says_so_of_a_large_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("phipipe.models.checkpoint.LARGE_PARAMETERS", 10**6)
    plan = planned("backend=llamacpp", "precision=int4", "quantize={}", SIGNROUND)
    (step,) = (step for step in plan.steps if step.name == "weights")
    assert step.params["iterations"] == 200
    assert step.needs["calibration"] == "calibration"
    parameters = plan.checkpoint.parameters
    assert step.memory_bytes > 4 * parameters + 2**30
    assert [advice.rule for advice in plan.warnings] == ["A04"]


def test_signround_without_a_matrix_to_learn_is_what_is_done_instead() -> None:
    sets = ("backend=llamacpp", "precision=int4")
    plans = [
        planned(
            *sets, f"quantize={{map: {{'{pattern}': {{bits: 8}}}}}}", f"weights={{learn: {how}}}"
        )
        for pattern, how in (
            ("layers.*", "signround"),
            ("layers.*", "search"),
            ("layers.[!1]*", "signround"),
        )
    ]
    learning = [step for plan in plans for step in plan.steps if step.name == "weights"]
    assert learning[0] == learning[1]
    assert learning[2].params["learn"] == "signround"
    schemes = [step.params["scheme"] for plan in plans for step in plan.steps if step.provenance]
    assert ["(search)" in scheme for scheme in schemes] == [True, True, False]
    assert [[one.rule for one in plan.warnings] for plan in plans] == [["A05"], [], []]


def test_iterations_are_signrounds_alone() -> None:
    assert Weights(learn="signround", iterations=50).iterations == 50
    with pytest.raises(ValidationError, match="learn: signround"):
        Weights(learn="gptq", iterations=50)


def test_a_matrix_that_auto_round_would_leave_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = linears.shapes

    def lower(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
        return {**shapes(checkpoint), "layers.1.self_attn.o_proj": (48, 256)}

    monkeypatch.setattr(linears, "shapes", lower)
    with pytest.raises(TargetError, match=r"layers\.1\.self_attn\.o_proj` has 48 rows"):
        planned("backend=llamacpp", "precision=int4", "quantize={}", SIGNROUND)


def test_the_step_takes_a_text_only_where_it_learns_from_one() -> None:
    checkpoint = checkpoints.read(BUILTIN_MODELS["tiny-phi3"])
    sizes = dict.fromkeys(linears.shapes(checkpoint), (4, 32))
    plain = learned.step(Weights(learn="round"), sizes, checkpoint, 1000)
    assert "calibration" not in plain.needs
    gptq = learned.step(Weights(learn="gptq"), sizes, checkpoint, 1000)
    assert "calibration" in gptq.needs
    assert "iterations" not in gptq.params
    weights = sum(rows * columns for rows, columns in linears.shapes(checkpoint).values())
    assert plain.output_bytes == weights * 4.5 / 8
