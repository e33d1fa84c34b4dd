"""Steps as a graph: every step once, arrows for what it reads, labels that mean nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.places import QUICKSTART, RECIPES
from testing.plans import plan, step
from testing.shell import Run

from phipipe.execution import drawing
from phipipe.execution.outlook import Outlook
from phipipe.execution.results import Forecast
from phipipe.planning.plan import Plan


def outlook(made: Plan, *cached: str) -> Outlook:
    forecast = tuple(
        Forecast(step=one, key=None, cached=one.name in cached, why="") for one in made.steps
    )
    return Outlook(plan=made, forecast=forecast, estimates={})


def test_every_step_is_one_box_with_arrows_from_what_it_reads() -> None:
    made = plan("a", step("x"), step("y", "x"), step("z", "y", after=("x",)))
    text = drawing.mermaid([outlook(made, "x")], "a")
    assert text.splitlines() == [
        "---",
        'title: "a"',
        "---",
        "flowchart TD",
        '  s0["x<br/>cached"]:::cached',
        '  s1["y"]:::waiting',
        '  s2["z"]:::waiting',
        "  s0 --> s1",
        "  s1 --> s2",
        "  s0 -.-> s2",
        f"  classDef cached {drawing.CACHED}",
        f"  classDef waiting {drawing.WAITING}",
    ]


def test_builds_share_the_boxes_that_they_share() -> None:
    first, second = plan("a", step("x"), step("y", "x")), plan("b", step("x"), step("z", "x"))
    assert len(drawing.boxes([outlook(first), outlook(second)])) == 3


@given(st.text(max_size=40))
def test_no_name_ends_a_label_or_begins_markup(name: str) -> None:
    made = plan("a", step("x"))
    box = drawing.boxes([outlook(made)])[0]
    assert box.lines == ("x",)
    label = drawing._plain(drawing.one_line(name))
    assert not re.search(r"[\"<>`&\[\]{}\n]", label)
    assert not re.search(r"#(?!\d+;)", label)
    quoted = drawing._quoted(name)
    assert re.fullmatch(r'"(?:[^"\\\n]|\\.)*"', quoted, re.DOTALL)


@pytest.mark.parametrize("kind", ["mermaid", "dot"])
def test_a_recipe_is_drawn_and_nothing_changes(run: Run, own_cache: Path, kind: str) -> None:
    code, out, err = run("graph", QUICKSTART, "--format", kind)
    assert code == 0, err
    assert "baseline" in out
    assert out.count("->") >= 15
    assert not list((own_cache / "objects").iterdir())
    words = ("--only", "torch-int4", "--only", "torch-int8")
    assert run("graph", RECIPES / "board.yaml", "--format", kind, *words)[0] == 0
