"""Builds that are alike but for their names: what they share, and that nothing else is shared."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from testing.recipes import write

from phipipe import backends
from phipipe.errors import TargetError
from phipipe.execution.nodes import Node, graph
from phipipe.hub.take import BUILTIN_MODELS
from phipipe.planning import preparation, tokenizers
from phipipe.planning.alike import Planner
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.recipe.build import Build

LOCAL = "{path: ./model}"
KINDS = (
    ("", ""),
    ("backend: llamacpp\n", ""),
    ("backend: torch\n", "{tokens: 1024, generate: {}, gates: {top1: {min: 0.5}}}"),
    ("backend: openvino\nweights: none\n", ""),
)


def one(path: Path) -> Build:
    (build,) = loading.load(path, options=backends.OptionsOf())
    return build


def twins(folder: Path, more: str = "", evaluate: str = "") -> list[Build]:
    """Two builds that differ in their names; one file's keys stand elsewhere in it."""
    first = write(folder, "one", more, evaluate=evaluate)
    second = write(folder, "other", f"# lines\n# more\n{more}", evaluate=evaluate)
    return [one(first), one(second)]


def bare(plan: Plan) -> Plan:
    """``plan`` without a word on whose step each was first, which decides nothing."""
    return replace(plan, steps=tuple(replace(step, recipe="") for step in plan.steps))


@pytest.mark.parametrize(("more", "evaluate"), KINDS)
def test_a_plan_is_what_it_would_be_alone(tmp_path: Path, more: str, evaluate: str) -> None:
    planner = Planner(elsewhere=True)
    first, second = twins(tmp_path, more, evaluate)
    plans = [planner.plan(build) for build in (first, second)]
    assert plans[0].steps[0] is plans[1].steps[0]
    alone = [preparation.prepare(build, elsewhere=True) for build in (first, second)]
    assert [bare(plan) for plan in plans] == [bare(plan) for plan in alone]
    assert plans[1].steps[-1] == alone[1].steps[-1]
    assert plans[1].build.recipe.model_fields_set == alone[1].build.recipe.model_fields_set


def described(plans: Sequence[Plan]) -> list[Node]:
    return [replace(node, step=node.step) for node in graph(plans).nodes.values()]


def test_a_graph_of_shared_steps_is_that_of_steps_of_their_own(tmp_path: Path) -> None:
    builds = [build for i, kind in enumerate(KINDS) for build in twins(tmp_path / str(i), *kind)]
    planner = Planner(elsewhere=True)
    shared = described([planner.plan(build) for build in builds])
    apart = described([preparation.prepare(build, elsewhere=True) for build in builds])
    assert shared == apart
    assert {node.step.recipe for node in shared} == {"one", "other"}


@pytest.mark.parametrize("other", ["tags: [x]\n", "context: 64\n", "weights: none\n"])
def test_what_differs_in_more_is_planned_for_itself(tmp_path: Path, other: str) -> None:
    planner = Planner(elsewhere=True)
    plans = [planner.plan(one(write(tmp_path, f"r{len(more)}", more))) for more in ("", other)]
    assert plans[0].steps[0] is not plans[1].steps[0]
    assert bare(plans[1]) == bare(preparation.prepare(plans[1].build, elsewhere=True))


def test_recipes_of_other_folders_have_other_files(tmp_path: Path) -> None:
    for name in ("here", "there"):
        shutil.copytree(BUILTIN_MODELS["tiny-phi3"], tmp_path / name / "model")
    planner = Planner(elsewhere=True)
    plans = [
        planner.plan(one(write(tmp_path / name, name, source=LOCAL))) for name in ("here", "there")
    ]
    assert [plan.checkpoint.folder for plan in plans] == [
        tmp_path / name / "model" for name in ("here", "there")
    ]


def test_a_source_is_examined_once_and_again_by_the_next_planner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    examine = tokenizers.original
    monkeypatch.setattr(
        tokenizers, "original", lambda *given: asked.append(given) or examine(*given)
    )
    shutil.copytree(BUILTIN_MODELS["tiny-phi3"], tmp_path / "model")
    paths = [
        write(tmp_path, f"r{i}", source=LOCAL, evaluate=f"{{tokens: {1024 * (1 + i % 2)}}}")
        for i in range(5)
    ]
    planner = Planner(elsewhere=True)
    before = [planner.plan(one(path)) for path in paths]
    assert len(asked) == 1
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text("utf-8").replace("10000.0", "9000.0"), "utf-8")
    assert Planner(elsewhere=True).plan(one(paths[0])).source != before[0].source
    assert len(asked) == 2


def test_each_refusal_points_into_its_own_recipe(tmp_path: Path) -> None:
    planner = Planner(elsewhere=True)
    for build, line in zip(twins(tmp_path, "unit: cuda\n"), (5, 7), strict=True):
        with pytest.raises(TargetError) as caught:
            planner.plan(build)
        assert str(caught.value).startswith(f"{tmp_path / build.name}.yaml:{line}:7:")
