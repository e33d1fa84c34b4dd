"""Axes and charts: where values lie, which ticks there are, and what is shown of many builds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.boards import entry, nineteen

from phipipe.board import axes, board, charts, colours, plots
from phipipe.board.charts import Chart, Page
from phipipe.board.entry import Entry


def page_of(entries: Sequence[Entry]) -> Page:
    every = board.ranked(entries)
    return Page(board.done(every), board.answers(every), colours.families(every))


def chart(name: str, entries: Sequence[Entry]) -> Chart:
    return next(one for one in charts.charts(page_of(entries)) if one.id == name)


values = st.lists(st.floats(0, 1e12), min_size=1, max_size=9)


@given(values)
def test_every_axis_keeps_values_and_ticks_in_order_and_inside(found: list[float]) -> None:
    for axis in (axes.linear(found), axes.logarithmic(found), axes.fitting(found)):
        shares = [axis.share(value) for value in sorted(found)]
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 100
        places = [tick.at for tick in axis.ticks]
        assert places == sorted(places)
        assert 2 <= len(places) <= axes.MOST_TICKS
        assert 0 <= places[0] < places[-1] <= 100
        assert len({tick.text for tick in axis.ticks}) == len(places)


@pytest.mark.parametrize(
    ("found", "is_log"),
    [([1, 9], False), ([1, 10], True), ([0, 0], False), ([0, 5], False), ([0, 1, 50], True)],
)
def test_an_axis_is_logarithmic_where_values_span_a_decade(
    found: list[float], is_log: bool
) -> None:
    assert axes.fitting(found).is_log == is_log


@pytest.mark.parametrize("found", [[2.05], [2.05, 2.05], [3e-7], [0.0], [1.0]])
def test_one_value_or_equal_ones_have_ticks_on_both_sides(found: list[float]) -> None:
    axis = axes.logarithmic(found)
    at = axis.share(max(found))
    assert axis.ticks[0].at <= at < axis.ticks[-1].at
    assert axes.linear(found).ticks[0].text == "0"


def test_a_zero_has_a_place_of_its_own_on_a_logarithmic_axis() -> None:
    axis = axes.logarithmic([0.0, 1e-7, 0.04])
    assert axis.ticks[0].text == "0"
    assert axis.share(0.0) == axis.ticks[0].at < axis.share(1e-7) < axis.share(0.04)
    assert "0" not in [tick.text for tick in axes.logarithmic([1e-7, 0.04]).ticks]


@pytest.mark.parametrize(
    ("value", "text"), [(1e-6, "10⁻⁶"), (3e-4, "3·10⁻⁴"), (0.05, "0.05"), (2e6, "2·10⁶"), (0, "0")]
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert axes._text(value) == text


def test_bars_start_at_zero_and_dots_stand_on_a_logarithmic_axis() -> None:
    near = [entry(str(i), 4 + i) for i in range(3)]
    assert chart("decode", near).has_bars
    far = [*near, entry("far", 400)]
    assert not chart("decode", far).has_bars
    assert "logarithmic" in chart("decode", far).caption


def test_the_best_comes_first_in_every_chart() -> None:
    entries = [entry(str(i), 4 + i, 0.01 / (i + 1)) for i in range(5)]
    first = {one.id: one.rows[0].name for one in charts.charts(page_of(entries))}
    assert first == {"divergence": "4", "decode": "0", "prefill": "0", "memory": "0"}


def test_a_chart_shows_some_and_opens_the_others() -> None:
    many = chart("divergence", [entry(str(i), 4 + i) for i in range(60)])
    assert (len(many.first), len(many.further)) == (charts.MOST_ROWS, 60 - charts.MOST_ROWS)
    few = chart("divergence", [entry(str(i), 4 + i) for i in range(16)])
    assert (len(few.first), len(few.further)) == (16, 0)


def test_figures_to_be_read_with_care_are_marked_in_charts() -> None:
    rows = {row.name: row for row in chart("decode", nineteen()).rows}
    assert rows["mlx-int4-17"].careful
    assert rows["mlx-int4-17"].text.endswith("°†")
    assert not rows["torch-int4-8"].careful


def test_the_scatter_numbers_each_front_from_small_to_large() -> None:
    page = page_of(nineteen())
    plot = plots.scatter(page)
    best, _ = board.standing(page.decisions)
    numbered = [dot for front in plot.fronts for dot in front.dots]
    assert [dot.number for dot in numbered] == list(range(1, len(numbered) + 1))
    assert {dot.name for dot in numbered} >= best & {dot.name for dot in plot.dots}
    for front in plot.fronts:
        sizes, distances = [dot.x for dot in front.dots], [dot.y for dot in front.dots]
        assert sizes == sorted(sizes)
        assert distances == sorted(distances, reverse=True)
        assert {dot.device for dot in front.dots} == {front.device}


def test_a_point_tells_size_fidelity_and_speed() -> None:
    told = {dot.name: dot.told for dot in plots.scatter(page_of(nineteen())).dots}
    assert told["torch-int4-8"] == "2.00 GiB, KLD 0.0250 ± 0.0008 nats, 22.7 tokens/s"


def test_small_plots_show_the_builds_to_ship_first() -> None:
    page = page_of(nineteen())
    made = plots.panels(page)
    assert made is not None
    wanted = dict.fromkeys(pick.build for a in page.decisions for pick in a.picks)
    assert [panel.name for panel in made.panels][: len(wanted)] == list(wanted)[: plots.MOST_PANELS]
    assert len(made.panels) <= plots.MOST_PANELS
    assert plots.panels(page_of([entry(profile={})])) is None


def test_equal_builds_and_failed_ones_make_charts() -> None:
    page = page_of([entry("a"), entry("b")])
    assert {dot.x for dot in plots.scatter(page).dots} == {50.0}
    assert [row.at for row in chart("divergence", [entry("a"), entry("b")]).rows] == [50.0, 50.0]
