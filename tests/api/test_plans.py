"""Plans from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing import documents, recipes
from testing.places import QUICKSTART
from testing.shell import Run

import phipipe
from phipipe import Recipe, RecipeError, SourceError, TargetError
from phipipe.api.plans import Drawing

TWO = "matrix:\n- {name: a}\n- {name: b, precision: int8}\n"


def test_a_plan_says_of_every_step_whether_it_runs_and_why() -> None:
    plan = phipipe.plan(QUICKSTART)
    (build,) = plan
    assert build is plan[0] is plan["quickstart"]
    assert [item.step.name for item in build.steps][:3] == ["source", "text", "baseline"]
    assert not any(item.cached for item in build.steps)
    assert all(item.why for item in build.todo)
    assert (plan.todo, plan.refusal, plan.seconds) == (len(build.steps), None, None)
    assert repr(plan) == "<Plan quickstart: 12 of 12 steps will run>"


def test_a_plan_says_how_little_stays_where_the_recipe_wants_it() -> None:
    def figures(sets: dict[str, str]) -> dict[str, int]:
        (build,) = phipipe.plan(QUICKSTART, sets=sets).to_dict()
        return {name: value for name, value in build.items() if name.endswith("_bytes")}

    every, lean = figures({}), figures({"cache.keep": "artifacts"})
    assert lean["kept_bytes"] < every["kept_bytes"]
    # the package is not copied but moved
    assert every["written_bytes"] - lean["written_bytes"] == every["delivered_bytes"]
    assert lean["delivered_bytes"] == every["delivered_bytes"]


def test_a_plan_changes_nothing(own_cache: Path, tmp_path: Path) -> None:
    phipipe.plan(QUICKSTART)
    assert not list(own_cache.glob("objects/*"))
    assert not list(own_cache.glob("runs/*"))


def test_a_plan_is_what_the_command_prints(run: Run) -> None:
    ours = phipipe.plan(QUICKSTART, sets={"precision": "int8"})
    code, out, _ = run("plan", str(QUICKSTART), "--set", "precision=int8", "--json")
    assert code == 0
    documents.fits(["plan"], json.dumps(ours.to_dict()))
    assert ours.to_dict() == json.loads(out)
    words = run("plan", str(QUICKSTART), "--set", "precision=int8")[1]
    assert [line.split() for line in str(ours).splitlines()] == [
        line.split() for line in words.splitlines()
    ]


def test_variants_are_planned_together(tmp_path: Path) -> None:
    path = recipes.write(tmp_path, "two", TWO)
    plan = phipipe.plan(path)
    assert [build.name for build in plan] == ["two-a", "two-b"]
    assert plan.todo < sum(len(build.todo) for build in plan)  # they share steps
    assert len(phipipe.plan(Recipe.load(path), only="b")) == 1
    with pytest.raises(KeyError, match="there are two-a, two-b"):
        _ = plan["c"]


def test_what_this_machine_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHIPIPE_MEMORY_LIMIT_GIB", "0.1")
    plan = phipipe.plan(QUICKSTART)
    assert plan.refusal is plan.doubt is not None
    assert "run would refuse" in str(plan)
    assert "run would refuse" in plan._repr_html_()
    with pytest.raises(phipipe.StepKilled):
        phipipe.run(QUICKSTART)
    monkeypatch.setenv("PHIPIPE_PREFLIGHT", "off")
    tried = phipipe.plan(QUICKSTART)
    assert tried.refusal is None
    assert tried.doubt is not None


@pytest.mark.parametrize(
    ("sets", "kind", "words"),
    [
        ({"bakend": "torch"}, RecipeError, "did you mean `backend`"),
        ({"device": "no-such"}, TargetError, "no-such"),
        ({"source": {"path": "missing"}}, SourceError, "missing"),
        ({"device": "intel-npu"}, TargetError, "onnxruntime"),
    ],
)
def test_what_is_wrong_is_raised(
    sets: dict[str, object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        phipipe.plan(QUICKSTART, sets=sets)


def test_a_recipe_that_is_wrong_in_two_ways_says_both(tmp_path: Path) -> None:
    path = recipes.write(tmp_path, "bad", "context: many\n")
    path.write_text(path.read_text("utf-8").replace("cpu-x86_64", "no-such"), "utf-8")
    with pytest.raises(RecipeError) as caught:
        phipipe.plan(path)
    assert "context" in caught.value.message


def test_a_notebook_shows_a_table_of_steps() -> None:
    page = phipipe.plan(QUICKSTART)._repr_html_()
    assert page.count("<tr>") == 13
    assert "needs `source`, which will run" in page


@pytest.mark.parametrize("kind", ["mermaid", "dot"])
def test_a_plan_draws_the_graph_that_the_command_prints(run: Run, kind: Drawing) -> None:
    printed = run("graph", QUICKSTART, "--format", kind)[1]
    assert phipipe.plan(QUICKSTART).graph(kind) == printed.rstrip("\n")
