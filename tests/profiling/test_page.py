"""A run's page as text: what it says, that it loads nothing, and that nothing breaks out of it."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from testing import kept_runs
from testing.kept_runs import Drawn, Kept
from testing.pages import Page

from phipipe.profiling import page
from phipipe.profiling.chart import chart
from phipipe.profiling.profile import profile

MOST_BYTES = 120_000
NASTY = "</script><img src=x onerror=alert(1)>\x1b]0;x\x07\u202e{{ 7*7 }}\" ' <b>"


def test_the_page_loads_nothing_and_its_ids_are_its_own() -> None:
    made = Page(page.render(profile(kept_runs.usual())))
    loads = [f for _, f in made.tags if {"src", "href", "srcset", "action"} & set(f)]
    ids = [found["id"] for _, found in made.tags if "id" in found]
    assert (loads, made.scripts) == ([], [])
    assert len(ids) == len(set(ids))
    assert {found.get("popovertarget", ids[0]) for _, found in made.tags} <= set(ids)
    policy = next(found for tag, found in made.tags if tag == "meta" and "http-equiv" in found)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_chart_and_table_have_every_step_and_mark_the_path() -> None:
    whole = profile(kept_runs.usual())
    made = page.render(whole)
    seen = Page(made).seen
    assert whole.critical_path is not None
    assert made.count('aria-label="on the critical path"') == 2 * len(whole.critical_path)
    assert made.count('class="bar"') == len(whole.steps) - 1  # one was cached
    assert "Cached: s3." in seen
    assert " → ".join(whole.critical_path) in seen
    assert made.count('<tr><th scope="row"') == len(whole.steps)


def test_the_page_of_many_steps_is_small() -> None:
    assert len(page.render(profile(kept_runs.usual(count=60))).encode()) <= MOST_BYTES


def test_a_run_that_did_nothing_says_so() -> None:
    seen = Page(page.render(profile(Kept([Drawn(0, cached=True)]).run()))).seen
    assert "No step ran: everything was cached." in seen


def test_nothing_breaks_out_of_the_page() -> None:
    told = Kept([])
    told.tell("run_started", command=NASTY, builds=[NASTY], pid=1, process_started=0.0)
    wait = {"for": "slot", "step": NASTY, "toolchain": None, "seconds": 1.0}
    told.tell("step_started", step=NASTY, why="w", needs=[NASTY], waits=[wait])
    told.now = 2.0
    told.tell("step_finished", step=NASTY, cached=False, key="a", machine=NASTY, seconds=1.0)
    made = Page(page.render(profile(kept_runs.kept(told.events))))
    assert not {"img", "script"} & {tag for tag, _ in made.tags}
    assert not any(name.startswith("on") for _, found in made.tags for name in found)
    written = made.seen + "".join(str(found) for _, found in made.tags)
    assert not {"\x1b", "\x07", "\u202e"} & set(written)
    assert "49" not in written.split("{{ 7*7 }}")[0][-5:]


@given(st.integers(0, 10_000), st.integers(1, 30))
def test_any_run_makes_a_page_whose_bars_lie_inside_the_chart(seed: int, count: int) -> None:
    whole = profile(kept_runs.usual(seed, count))
    places = re.findall(r"(?:left|width):(-?[\d.e+-]+|nan|inf)%", page.render(whole))
    assert all(0 <= float(place) <= 100 for place in places)
    for bar in chart(whole).bars:
        assert bar.wait_left <= bar.left + 0.01
        assert bar.left + bar.wide <= 100.01
