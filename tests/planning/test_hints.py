"""The hint at learned weights: only where they could be had and nobody spoke of them, and nowhere
that machines read."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.shell import Run

from phipipe import backends
from phipipe.api import show
from phipipe.cli import listeners
from phipipe.hub.take import BUILTIN_MODELS
from phipipe.planning import hints, preparation
from phipipe.planning.plan import Plan
from phipipe.recipe import loading

OPTIONS = backends.OptionsOf()
TEXT = """\
name: x
source: {builtin: tiny-phi3}
device: cpu-x86_64
precision: int4
quantize: {}  # the runtime's own rounding, which is not usual for a small model
"""


def planned(folder: Path, text: str = TEXT, *sets: str) -> Plan:
    (folder / "r.yaml").write_text(text, "utf-8")
    (build, *_) = loading.load(folder / "r.yaml", options=OPTIONS, sets=sets)
    return preparation.prepare(build, elsewhere=True)


@pytest.mark.parametrize(
    "sets",
    [
        ("weights={group_size: 64}",),
        ("weights={group_size: -1}", "backend=openvino", "device=intel-npu", "context=512"),
    ],
)
def test_a_group_size_of_weights_that_are_not_learned_has_no_effect(
    tmp_path: Path, sets: tuple[str, ...]
) -> None:
    hint = hints.of(planned(tmp_path, TEXT, *sets))
    assert hint is not None
    assert "`weights.group_size` has no effect" in hint
    assert planned(tmp_path, TEXT, *sets, "weights.learn=gptq").steps  # the advice works


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("backend=llamacpp",),
        ("backend=litert", "device=android-phone"),
        ("backend=mlx", "device=apple-silicon"),
        ("quantize={map: {lm_head: {bits: 8}}}",),
    ],
)
def test_a_build_that_could_learn_is_told(tmp_path: Path, sets: tuple[str, ...]) -> None:
    plan = planned(tmp_path, TEXT, *sets)
    told = hints.of(plan)
    assert told is not None
    assert "`weights: {learn: gptq}`" in told
    assert "about a minute on two cores" in told
    assert planned(tmp_path, TEXT, *sets, "weights={learn: gptq}").steps  # the advice works


@pytest.mark.parametrize(
    "sets",
    [
        ("precision=int8",),
        ("precision=fp16", "backend=llamacpp"),
        ("weights=none",),
        ("weights={learn: round}",),
        ("weights={smooth: awq}",),
        ("weights={group_size: 64}", "precision=int8"),
        ("weights={group_size: -1}",),  # onnxruntime has no scale of a row
        ("weights={group_size: 32}", "backend=openvino", "device=intel-npu", "context=512"),
        ("backend=llamacpp", "quantize={imatrix: true}"),  # learns from the text already
        ("quantize={symmetric: false}",),  # the lattice has no zero points
        ("backend=qnn", "device=snapdragon-x-npu"),  # stores no learned weights
    ],
)
def test_a_build_that_could_not_or_was_decided_is_not(
    tmp_path: Path, sets: tuple[str, ...]
) -> None:
    assert hints.of(planned(tmp_path, TEXT, *sets)) is None


def test_a_variant_that_says_none_has_decided(tmp_path: Path) -> None:
    text = TEXT + "matrix: [{name: a, weights: none}]\n"
    assert hints.of(planned(tmp_path, text)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("context=512", "with a text to learn from (`calibrate: {text: {file: PATH}}`) left"),
        ("calibrate.text={builtin: stories}", "learn: gptq}` left"),
        ("calibrate.text={file: text.txt}", "learn: gptq}` left"),
        ("evaluate.text={file: text.txt}", "with a `calibrate.text` that is not the one evaluated"),
        ("calibrate={text: {builtin: stories}, window: 4096}", "with a `calibrate.window` of"),
    ],
)
def test_what_is_lacking_to_learn_is_told(tmp_path: Path, change: str, words: str) -> None:
    source = f"source={{path: {BUILTIN_MODELS['tiny-phi3'].as_posix()}}}"
    (tmp_path / "text.txt").write_text("Once upon a time there was a fox.", "utf-8")
    sets = [TEXT, source, change]
    if change.startswith("evaluate"):
        sets.append("calibrate.text={file: text.txt}")
    told = hints.of(planned(tmp_path, *sets))
    assert told is not None
    assert words in told


def test_it_is_no_warning_and_changes_no_step(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert plan.warnings == ()
    (package,) = (step for step in plan.steps if step.name == "package")
    assert package.params["warnings"] == []


def test_a_run_of_many_says_it_once(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plans = [planned(tmp_path, TEXT, "precision=int8"), plan, plan]
    assert show.hint_lines(plans) == [hints.of(plan)]
    stream = io.StringIO()
    with listeners.listener(plans, stream):
        pass
    assert stream.getvalue().count("hint: ") == 1


def test_plan_says_it_to_people_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TEXT, "utf-8")
    code, out, err = run("plan", tmp_path / "r.yaml")
    assert code == 0, err
    assert out.count("hint: ") == 1
    assert "hint" not in err
    code, out, err = run("plan", tmp_path / "r.yaml", "--json", "--strict")
    assert code == 0, err
    assert "hint" not in out + err
    assert json.loads(out)[0]["warnings"] == []


def test_the_time_grows_with_parameters_and_tokens(tmp_path: Path) -> None:
    plan = planned(tmp_path, TEXT, "calibrate.tokens=12288")
    large = replace(plan.checkpoint, parameters=3_800_000_000)
    told = hints.of(replace(plan, source=large))
    assert told is not None
    assert "(about 40 min on two cores)" in told


@given(st.floats(1e-3, 170_000), st.floats(1e-3, 170_000))
def test_times_are_rounded_up_and_in_order(one: float, other: float) -> None:
    told = [minutes(hints.about(seconds)) for seconds in sorted((one, other))]
    assert told == sorted(told)
    assert 60 * told[1] >= max(one, other)
    assert told[1] <= 1 + max(one, other) / 60 * 1.5


def minutes(told: str) -> int:
    units = {"minute": 1, "min": 1, "h": 60, "day": 1440, "days": 1440}
    parts = told.removeprefix("about ").replace("a minute", "1 minute").split()
    return sum(int(n) * units[unit] for n, unit in zip(parts[::2], parts[1::2], strict=True))
