"""Builds that score as many windows as it takes: what their steps are told, beside others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from testing.places import QUICKSTART
from testing.plans import planned

from phipipe import backends
from phipipe.api import plan_words
from phipipe.evaluate import run_reports
from phipipe.planning import plans, preparation, sampled, tuning
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.steps import Step

MATRIX = """\
name: mixed
source: {builtin: tiny-phi3}
device: cpu-x86_64
precision: int4
matrix:
"""


def steps(plan: Plan) -> dict[str, Step]:
    return {step.name: step for step in plan.steps}


def mixed(folder: Path, *tokens: str, **changed: str) -> list[dict[str, Step]]:
    """The steps of a matrix whose variants differ in their number of tokens."""
    rows = [
        f"  - {{name: v{i}, evaluate: {{tokens: {asked}{changed.get(f'v{i}', '')}}}}}\n"
        for i, asked in enumerate(tokens)
    ]
    path = folder / "mixed.yaml"
    path.write_text(MATRIX + "".join(rows), "utf-8")
    return [steps(plan) for plan in plans.planned(path)]


def build_of(*sets: str) -> Any:
    (build,) = loading.load(QUICKSTART, sets=sets, options=backends.OptionsOf())
    return build


@pytest.mark.parametrize(
    ("written", "parameters", "expected"),
    [
        ("none", 10**9 + 1, "auto"),
        ("none", 10**9, 4096),
        ("2048", 4 * 10**9, 2048),
        ("auto", 5 * 10**6, "auto"),
    ],
)
def test_large_models_score_as_many_as_needed_unless_told_otherwise(
    written: str, parameters: int, expected: object
) -> None:
    build = build_of(f"evaluate.tokens={written}")
    whole = replace(planned().checkpoint, parameters=parameters)
    assert sampled.settled(build, whole).recipe.evaluate.tokens == expected


def test_a_number_plans_what_it_always_did() -> None:
    made = steps(planned())
    assert made["baseline"].params == {"tokens": 4096, "window": 512, "skip": 0}
    assert set(made["evaluate"].params) == {"backend", "parameters"}
    assert steps(planned("evaluate.tokens=none")) == made


def test_the_baseline_is_asked_for_the_cap_and_the_build_for_what_its_gates_need() -> None:
    gates = "gates={kld_mean: {max: 0.05}, kld_run: {max: 0.06}, size_gib: {max: 1}}"
    made = steps(planned("evaluate.tokens=auto", f"evaluate.{gates}"))
    assert made["baseline"].params == {"tokens": 4096, "window": 512, "skip": 0, "at_most": True}
    # the runtime's own arithmetic is what the file is scored with
    both = {"kld_mean": {"max": 0.05}, "kld_run": {"max": 0.06}}
    assert made["evaluate"].params["until"] == {"tokens": 4096, "gates": both}
    assert "until" not in made["parity"].params  # a conversion is proved on all of it


def test_a_run_apart_stops_by_its_own_gate() -> None:
    gates = "gates={kld_mean: {max: 0.05}, kld_run: {max: 0.06}}"
    sets = ("backend=llamacpp", "quantize={}", "evaluate.tokens=auto", f"evaluate.{gates}")
    made = steps(planned(*sets))
    assert made["evaluate"].params["until"]["gates"] == {"kld_mean": {"max": 0.05}}
    run = made[run_reports.STEP].params
    assert run["until"]["gates"] == {"kld_run": {"max": 0.06}}
    assert run["tokens"] == 4096


def test_a_window_beyond_the_cap_is_still_one_window() -> None:
    evaluate = build_of("evaluate.tokens=auto", "evaluate.window=8192").recipe.evaluate
    assert evaluate.most_tokens == 8192


def test_builds_of_one_file_share_the_longest_baseline(tmp_path: Path) -> None:
    auto, number = mixed(tmp_path, "auto", "8192")
    assert auto["baseline"] == number["baseline"]
    assert auto["baseline"].params == {"tokens": 8192, "window": 512, "skip": 0}
    assert auto["evaluate"].params["until"]["tokens"] == 4096
    assert number["evaluate"].params["told"] == 4096
    assert "told" not in number["parity"].params


def test_a_shorter_number_keeps_its_own_baseline(tmp_path: Path) -> None:
    auto, number = mixed(tmp_path, "auto", "1024")
    assert auto["baseline"].params["tokens"] == 4096
    assert number["baseline"].params == {"tokens": 1024, "window": 512, "skip": 0}
    assert number["evaluate"].params["told"] == 4096


def test_builds_that_compare_as_they_are_know_nothing_of_each_other(tmp_path: Path) -> None:
    for tokens in (("auto", "auto"), ("4096", "2048")):
        for made in mixed(tmp_path, *tokens):
            assert "told" not in made["evaluate"].params
    auto, other = mixed(tmp_path, "auto", "8192", v1=", window: 256")
    assert auto["baseline"].params["tokens"] == 4096
    assert "told" not in other["evaluate"].params


def test_files_of_a_choice_are_scored_in_full() -> None:
    build = build_of("evaluate.tokens=auto")
    made = steps(tuning.trial(preparation.prepare(build)))
    assert "until" not in made["evaluate"].params
    assert "at_most" not in made["baseline"].params
    assert made["baseline"].params["first"] > 0


def test_the_plan_says_at_most() -> None:
    (line,) = sampled.lines(planned("evaluate.tokens=auto"))
    assert line.startswith("scored on at most 4,096 tokens: ")
    assert sampled.lines(planned()) == []
    assert plan_words.sampled is sampled
