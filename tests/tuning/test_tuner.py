"""The choice of widths in a world whose sizes and losses are known: no toolchain runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phipipe import backends
from phipipe.algorithms.sensitivity import CHECKS, ERRORS
from phipipe.backends import widths
from phipipe.backends.base import AnyBackend
from phipipe.errors import TargetError
from phipipe.execution.results import Outcome, Result
from phipipe.planning import preparation, tuning
from phipipe.planning.plan import Plan
from phipipe.recipe import document, loading
from phipipe.recipe.build import Build
from phipipe.recipe.recipe import Gate
from phipipe.store.records import Stored
from phipipe.tuning.aims import Aim, asked
from phipipe.tuning.results import AS_IT_STANDS, CHOSEN, SMALLEST
from phipipe.tuning.tuner import Tuner

BESIDE = 700_000  # bytes of a file that no plan counts


def build_of(backend: str, more: str = "") -> Build:
    own = "" if "weights" in more or "quantize" in more else "weights: none\n"
    text = f"""\
name: known
source: {{builtin: tiny-phi3}}
device: cpu-x86_64
backend: {backend}
precision: int4
{own}evaluate: {{text: {{builtin: stories}}, tokens: 512, gates: {{kld_mean: {{max: 0.01}}}}}}
{more}"""
    found, error = loading.of_document(
        document.parse(text, "known.yaml"), Path(), options=backends.OptionsOf()
    )
    assert error is None
    return found[0]


class World:
    """Does the steps of a plan: files are ``BESIDE`` larger than planned, and their divergence is
    ``factor · loss ** power``."""

    def __init__(self, folder: Path, factor: float = 1.3, power: float = 0.9) -> None:
        self._folder, self._factor, self._power = folder, factor, power
        self.files = 0
        self.loops = 0  # so many of the files that are asked
        self._losses: Mapping[str, Mapping[str, float]] = {}

    def attempt(self, plan: Plan) -> Outcome:
        names = [step.name for step in plan.steps]
        if "codec-errors" in names:
            return self._sense(plan)
        return self._score(plan)

    def _sense(self, plan: Plan) -> Outcome:
        choices = plan.steps[-1].params["choices"]
        self._losses = {
            name: {label: _loss(name, width) for label, width in labelled.items()}
            for name, labelled in choices.items()
        }
        check = {"name": "layers.0.mlp.down_proj", "predicted": 1e-3, "measured": 1.1e-3}
        sensed = {"checks": [check], "tokens": 2048}
        return self._outcome(
            plan, {"codec-errors": (ERRORS, self._losses), "sensitivity": (CHECKS, sensed)}
        )

    def _score(self, plan: Plan) -> Outcome:
        step = next(step for step in plan.steps if step.name == "evaluate")
        recipe, planned = plan.build.recipe, 2_000_000
        loss = 0.02  # of the recipe as it stands
        if "map" in recipe.quantize:
            self.files += 1
            options = backends.load(recipe.backend).options.model_validate(recipe.quantize)
            found = widths.resolve(options.map, plan.checkpoint)
            loss = sum(self._losses[name][str(stored)] for name, stored in found.items())
            artifact = next(s for s in plan.steps if s.name == step.needs["artifact"])
            planned = artifact.output_bytes
        metrics = {
            "kld_mean": self._factor * loss**self._power,
            "top1": 0.9,
            "size_gib": (planned + BESIDE) / 2**30,
        }
        report = {"metrics": metrics, "stderr": {"kld_mean": 1e-4}}
        reports = {"evaluate": ("metrics.json", report)}
        if any(step.name == "answers" for step in plan.steps):
            reports["answers"] = ("answers.json", self._answers())
        return self._outcome(plan, reports)

    def _answers(self) -> dict[str, Any]:
        """Of three prompts the original loops in the first, this file perhaps in the third."""
        self.loops, here = self.loops - 1, self.loops > 0
        reply = {
            "original": "a", "text": "a", "same_tokens": 3, "ended": not here, "empty": False,
            "answer_flips": False, "tool_json_valid": None,
        }  # fmt: skip
        loops = {1: None, 2: False, 4: here}
        replies = [{"line": line, **reply, "loops": loops[line]} for line in loops]
        return {"metrics": {"loops": here / 2}, "prompts": 3, "replies": replies}

    def _outcome(self, plan: Plan, reports: Mapping[str, tuple[str, Any]]) -> Outcome:
        results = {}
        for name, (file, content) in reports.items():
            folder = self._folder / f"{name}-{len(list(self._folder.iterdir()))}"
            folder.mkdir()
            (folder / file).write_text(json.dumps(content), "utf-8")
            step = next(step for step in plan.steps if step.name == name)
            stored = Stored(key="0" * 64, digest="", path=folder, outputs=())
            results[name] = Result(step=step, key="0" * 64, stored=stored, cached=False)
        return Outcome(plan=plan, results=results)


def _loss(name: str, width: Any) -> float:
    """Half a step's square, times how much the matrix matters."""
    matters = 1 + int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) % 50
    if isinstance(width, str):
        bits = {"Q3": 3.0, "IQ": 4.0, "Q4": 4.1, "Q5": 5.0, "Q6": 6.0, "Q8": 8.0}[width[:2]]
    else:
        bits = width["bits"] - (width.get("group_size") or 32) / 512
    return matters * 4e-3 * 4.0 ** -(bits - 3)


@pytest.mark.parametrize("backend", ["onnxruntime", "llamacpp", "openvino", "torch"])
@pytest.mark.parametrize("bits", [5.5, 7.0])
def test_the_best_file_fits_and_was_predicted(tmp_path: Path, backend: str, bits: float) -> None:
    world = World(tmp_path)
    found = Tuner(build_of(backend), world.attempt, Aim(bits=bits * 2), 4).run(answers=False)
    assert [trial.what for trial in found.trials][:2] == [SMALLEST, CHOSEN]
    assert found.trials[-1].what == AS_IT_STANDS
    assert found.best.what == CHOSEN
    assert found.limit_bytes is not None
    assert found.best.size_bytes <= found.limit_bytes
    assert found.best.predicted_kld == pytest.approx(found.best.kld, rel=0.5)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    share=st.floats(0.0, 1.1),
    files=st.integers(1, 5),
    factor=st.floats(0.3, 3),
    power=st.floats(0.6, 1.3),
)
def test_no_file_that_is_taken_is_too_large(
    tmp_path_factory: pytest.TempPathFactory, share: float, files: int, factor: float, power: float
) -> None:
    build = build_of("onnxruntime")
    plan = preparation.prepare(build)
    scope = tuning.scope(build, preparation.job_of(build, plan.whole))
    largest = scope.base_bytes + sum(max(g.size_bytes.values()) for g in scope.groups.values())
    limit = int(scope.smallest_bytes + share * (largest - scope.smallest_bytes)) + BESIDE
    world = World(tmp_path_factory.mktemp("world"), factor, power)
    try:
        found = Tuner(build, world.attempt, Aim(size_bytes=limit), files).run(answers=False)
    except TargetError:
        assert files == 1  # whose file was a little too large, and nothing was left to correct it
        return
    assert found.best.size_bytes <= limit
    assert world.files <= files + 1  # the chosen one is scored twice


def test_without_an_aim_the_recipe_sets_the_size(tmp_path: Path) -> None:
    found = Tuner(build_of("onnxruntime"), World(tmp_path).attempt, Aim(), 4).run(answers=False)
    assert found.trials[0].what == AS_IT_STANDS
    assert found.limit_bytes == found.trials[0].size_bytes


def test_gates_give_the_smallest_file_that_passes(tmp_path: Path) -> None:
    world = World(tmp_path)
    found = Tuner(build_of("llamacpp"), world.attempt, Aim(by_gates=True), 5).run(answers=False)
    assert found.best.kld <= 0.01
    assert found.best.kld >= 0.007
    smaller = [trial for trial in found.trials if trial.size_bytes < found.best.size_bytes]
    assert all(trial.kld > 0.01 for trial in smaller)


def test_gates_that_nothing_passes_are_told(tmp_path: Path) -> None:
    build = build_of("llamacpp")
    gates = {"kld_mean": build.recipe.evaluate.gates["kld_mean"].model_copy(update={"max": 1e-9})}
    evaluate = build.recipe.evaluate.model_copy(update={"gates": gates})
    build = replace(build, recipe=build.recipe.model_copy(update={"evaluate": evaluate}))
    with pytest.raises(TargetError, match="none passes"):
        Tuner(build, World(tmp_path).attempt, Aim(by_gates=True), 4).run(answers=False)


def test_a_file_whose_answers_loop_is_refused_and_the_next_best_is_taken(tmp_path: Path) -> None:
    world, told = World(tmp_path), list[str]()
    world.loops = 1
    aim = Aim(bits=12)
    found = Tuner(build_of("llamacpp"), world.attempt, aim, 4, told.append).run(answers=True)
    (refused,) = [trial for trial in found.trials if trial.refusal]
    assert refused.looping == (4,)
    assert refused.kld < found.best.kld
    assert found.best.size_bytes <= (found.limit_bytes or 0)
    assert found.answers is not None
    assert not found.answers.metrics["loops"], "of the one that is taken"
    why = "its answers loop where the original's do not (prompts 4)"
    assert f"known: that file ({refused.what}) is refused: {why}" in told


def test_a_closer_file_is_built_where_one_that_passes_the_gates_loops(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.loops = 1
    found = Tuner(build_of("llamacpp"), world.attempt, Aim(by_gates=True), 6).run(answers=True)
    (refused,) = [trial for trial in found.trials if trial.refusal]
    assert found.best.kld < refused.kld
    assert found.best.size_bytes > refused.size_bytes


@pytest.mark.parametrize("aim", [Aim(bits=12), Aim(), Aim(by_gates=True)])
def test_where_all_files_loop_none_is_taken(tmp_path: Path, aim: Aim) -> None:
    world = World(tmp_path)
    world.loops = 99
    with pytest.raises(TargetError, match="refused; the closest: its answers loop") as caught:
        Tuner(build_of("llamacpp"), world.attempt, aim, 4).run(answers=True)
    assert "evaluate.gates.loops" in (caught.value.hint or "")
    assert Tuner(build_of("llamacpp"), world.attempt, aim, 4).run(answers=False).best


def test_the_recipes_own_gate_on_loops_decides(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.loops = 1
    build = build_of("llamacpp")
    gates = {**build.recipe.evaluate.gates, "loops": Gate(max=0.5)}
    evaluate = build.recipe.evaluate.model_copy(update={"gates": gates})
    build = replace(build, recipe=build.recipe.model_copy(update={"evaluate": evaluate}))
    found = Tuner(build, world.attempt, Aim(bits=12), 4).run(answers=True)
    assert not any(trial.refusal for trial in found.trials)
    assert found.answers is not None
    assert found.answers.metrics["loops"] == 0.5


def test_a_size_that_no_choice_reaches_is_refused_before_a_step(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(TargetError, match=r"no choice of widths gets below \d"):
        Tuner(build_of("openvino"), world.attempt, Aim(size_bytes=1000), 4).run(answers=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "llamacpp", "litert"])
def test_the_size_that_is_offered_can_be_built(tmp_path: Path, backend: str) -> None:
    build = build_of(backend)
    with pytest.raises(TargetError) as caught:
        Tuner(build, World(tmp_path).attempt, Aim(size_bytes=1000), 4)
    offered = re.search(r"--size (\S+),", caught.value.hint or "")
    assert offered
    aim = asked(offered[1], None, gates=False, builds=4)
    found = Tuner(build, World(tmp_path).attempt, aim, 4).run(answers=False)
    assert found.limit_bytes is not None
    assert found.best.size_bytes <= found.limit_bytes


def test_a_backend_without_widths_says_which_have_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = backends.load

    def without(name: str) -> AnyBackend:
        return replace(load(name), stores=None) if name == "litert" else load(name)

    monkeypatch.setattr(backends, "load", without)
    text = build_of("litert")
    with pytest.raises(TargetError, match="nothing to choose") as caught:
        Tuner(text, World(tmp_path).attempt, Aim(bits=5), 4).run(answers=False)
    assert "onnxruntime" in (caught.value.hint or "")


def test_other_precisions_are_refused_by_place(tmp_path: Path) -> None:
    build = build_of("onnxruntime")
    build = replace(build, recipe=build.recipe.model_copy(update={"precision": "int8"}))
    with pytest.raises(TargetError, match="int4 builds"):
        Tuner(build, World(tmp_path).attempt, Aim(bits=5), 4).run(answers=False)


def test_texts_to_learn_from_and_to_choose_by_are_apart(tmp_path: Path) -> None:
    build = build_of("onnxruntime", "calibrate: {tokens: 2048, window: 256}")
    trial = tuning.trial(preparation.prepare(build))
    steps = {step.name: step for step in trial.steps}
    assert steps["baseline"].params["first"] == 2048
    assert steps["text"].outside["files"].files == ("calibration.txt",)
    assert "package" not in steps


def test_learned_widths_are_chosen_in_groups_that_the_lattice_has(tmp_path: Path) -> None:
    build = build_of("onnxruntime", "weights: {learn: round}")
    job = preparation.job_of(build, preparation.prepare(build).whole)
    scope = tuning.scope(build, job)
    assert set(scope.groups["layers.0.mlp.down_proj"].widths) == {
        f"{bits} bits in groups of {size}" for bits in (4, 8) for size in (32, 64, 128)
    }


def test_gates_out_of_reach_are_tried_with_the_widest_choice(tmp_path: Path) -> None:
    build = build_of("onnxruntime")
    gates = {"kld_mean": build.recipe.evaluate.gates["kld_mean"].model_copy(update={"max": 1e-12})}
    evaluate = build.recipe.evaluate.model_copy(update={"gates": gates})
    build = replace(build, recipe=build.recipe.model_copy(update={"evaluate": evaluate}))
    told = []
    with pytest.raises(TargetError) as caught:
        Tuner(build, World(tmp_path).attempt, Aim(by_gates=True), 6, told.append).run(answers=False)
    assert any(CHOSEN in line for line in told)
    assert "--builds" not in (caught.value.hint or "")  # more of them would not help


def test_a_text_too_short_to_choose_by_is_told_before_anything_is_measured() -> None:
    build = build_of("onnxruntime")
    plan = preparation.prepare(build)
    job = preparation.job_of(build, plan.whole)
    steps = {s.name: s for s in tuning.sensing(plan, job, tuning.scope(build, job)).steps}
    assert steps["sensitivity"].after == (tuning.SELECTION,)
    selected, chosen = steps[tuning.SELECTION].params, tuning.trial(plan).steps
    baseline = next(step for step in chosen if step.name == "baseline")
    assert {key: baseline.params[key] for key in ("first", "tokens", "window")} == selected
