"""Scales that are trained: closer to the original, never further, from the same text twice, and cut
short; and its place in plans."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from testing.drive import facts_of, section
from testing.plans import planned

from phipipe.algorithms import learned
from phipipe.package import learning
from phipipe.recipe.learned import Learning, Weights

DRIVER = Path(__file__).parent / "distil_driver.py"
PLAIN = ("backend=llamacpp", "precision=int4", "quantize={}")
LEARNED, DISTILLED = "weights={learn: gptq}", "weights={learn: gptq, distil: true}"


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return facts_of(python_of("torch"), DRIVER, tmp_path_factory.mktemp("distil"))


def test_predictions_come_nearer_to_the_originals(facts: dict[str, Any]) -> None:
    for text in ("held-out", "evaluation"):
        found = section(facts, text)
        assert found["distilled"] < 0.95 * found["weights"], text


def test_the_index_says_what_the_whole_model_says(facts: dict[str, Any]) -> None:
    index, found = section(facts, "index"), section(facts, "held-out")
    assert index["learn"] == "round"
    assert index["distil"]["before"] == pytest.approx(found["weights"], rel=1e-3)
    assert index["distil"]["after"] == pytest.approx(found["distilled"], rel=1e-3)


def test_scales_of_the_layers_alone_change_and_stay_on_the_lattice(facts: dict[str, Any]) -> None:
    found = section(facts, "codes")
    before, after = found["names"]
    assert before == after
    assert found["codes"]
    assert found["lattice"]
    assert found["computed"]
    assert found["moved"] == [name for name in before if name.startswith("layers.")]
    assert found["files"] == ["lattice.json", *(f"part-{i:05}.safetensors" for i in range(6))]


def test_gradients_one_layer_at_a_time_are_those_of_the_whole_model(facts: dict[str, Any]) -> None:
    found = section(facts, "slopes")
    assert len(found) == 20
    assert max(found.values()) < 1e-3


def test_a_run_that_was_cut_short_goes_on_and_ends_the_same(facts: dict[str, Any]) -> None:
    cut = section(facts, "cut")
    assert cut["left"] == ["distil.npz"]
    assert cut["passes"] == facts["passes"]
    assert cut["digest"] == facts["digest"]


def test_what_only_gets_worse_stays_as_it_was(facts: dict[str, Any]) -> None:
    worse = section(facts, "worse")
    assert worse["digest"] == worse["before"]
    assert worse["told"]["after"] == worse["told"]["before"]


def test_activations_that_are_no_numbers_are_told_by_layer(facts: dict[str, Any]) -> None:
    kind, message, _ = facts["nan"]
    assert kind == "StepFailed"
    assert "layer 1" in message


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
def test_every_backend_stores_the_distilled_weights(backend: str, device: str) -> None:
    sets = (f"backend={backend}", f"device={device}", "precision=int4", "quantize={}")
    steps = {step.name: step for step in planned(*sets, DISTILLED).steps}
    names = list(steps)
    assert names.index("weights") < names.index("distil") < names.index("quantize")
    assert steps["distil"].needs == {
        "source": "source",
        "weights": "weights",
        "calibration": "calibration",
        "held-out": "held-out",
    }
    readers = {name for name, step in steps.items() if "weights" in step.needs.values()}
    assert readers == {"distil"}
    assert steps["package"].needs["weights"] == "distil"
    assert steps["quantize"].needs["weights"] == "distil"
    told = steps["package"].params["scheme"]
    assert told.endswith(", learned once for all runtimes (gptq, distilled)")


def test_what_is_judged_by_follows_what_is_learned_from() -> None:
    sets = (*PLAIN, "calibrate={text: {builtin: stories}, tokens: 4096, window: 128}")
    steps = {step.name: step for step in planned(*sets, DISTILLED).steps}
    assert steps["held-out"].params == {"tokens": 2048, "window": 128, "first": 4096}
    assert steps["calibration"].params == {"tokens": 4096, "window": 128}


def test_learning_itself_is_the_same_step_with_and_without_it() -> None:
    plain, distilled = (
        {step.name: step for step in planned(*PLAIN, weights).steps}
        for weights in (LEARNED, DISTILLED)
    )
    assert plain["weights"] == distilled["weights"]
    assert not {"distil", "held-out"} & plain.keys()
    assert "distil" not in plain["package"].params["recipe"]["weights"]


def test_a_smoothed_checkpoint_is_what_the_scales_are_trained_towards() -> None:
    sets = (*PLAIN, "weights={learn: round, distil: true, smooth: awq}")
    steps = {step.name: step for step in planned(*sets).steps}
    assert steps["distil"].needs["source"] == "smooth"
    assert steps["quantize"].needs["weights"] == "distil"


def test_only_learned_weights_are_distilled() -> None:
    assert Weights(distil=False).learn is None
    with pytest.raises(ValidationError, match="learn: gptq"):
        Weights(distil=True)
    with pytest.raises(ValidationError):
        Weights.model_validate({"learn": "gptq", "distil": 3})


@pytest.mark.parametrize(
    ("learn", "distilled", "words"),
    [
        (None, None, ""),
        ("round", None, ", rounded once for all runtimes"),
        ("gptq", None, ", learned once for all runtimes (gptq)"),
        ("round", True, ", learned once for all runtimes (round, distilled)"),
        ("gptq", False, ", learned once for all runtimes (gptq, distilled without a gain)"),
    ],
)
def test_a_scheme_says_how_weights_were_learned(
    learn: Learning | None, distilled: bool | None, words: str
) -> None:
    assert learned.words(learn, distilled=distilled) == words


@pytest.mark.parametrize(
    ("after", "words"),
    [(0.02, "(gptq, distilled)"), (0.03, "(gptq, distilled without a gain)")],
)
def test_a_package_is_called_distilled_only_where_scales_were_better(
    tmp_path: Path, after: float, words: str
) -> None:
    told = {"learn": "gptq", "distil": {"before": 0.03, "after": after}, "weights_digest": "d"}
    (tmp_path / learned.INDEX).write_text(json.dumps(told), "utf-8")
    sets = ("backend=llamacpp", "precision=int4", "quantize={}")
    plan = planned(*sets, "weights={learn: gptq, distil: true}")
    (package,) = (step for step in plan.steps if step.name == "package")
    weights = learning.told(tmp_path)
    assert weights == {"learn": "gptq", "distil": told["distil"], "digest": "d"}
    assert learning.scheme(package.params, weights).endswith(words)
    plain = {"scheme": "Q4_0"}
    assert learning.scheme(plain, None) == learning.scheme(plain, {"digest": "d"}) == "Q4_0"
