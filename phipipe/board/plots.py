"""The two plots of the page that have a height: size against fidelity, and the divergence along the
window of the chosen builds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from phipipe.board import axes, board, picks
from phipipe.board.axes import Axis
from phipipe.board.charts import Page, told
from phipipe.board.entry import Entry, one_line

MOST_PANELS = 6
MOST_PANEL_TICKS = 3
# Sides of a dot: how far right and up. Percent of a phone's plot: how far a number stands from its
# dot, and what is too near.
SIDES = {"sw": (-1, -1), "nw": (-1, 1), "se": (1, -1), "ne": (1, 1)}
OFFSET, NEAR = (5.0, 4.0), (5.0, 3.6)
Place = tuple[float, float]
"""Percent from the left and from the bottom of a plot."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A build: percent from the left and from the bottom. Those of a front have a number."""

    build: int
    name: str
    device: str
    colour: int
    x: float
    y: float
    told: str
    number: int = 0
    side: str = ""  # of the dot, where its number has room


@dataclass(frozen=True)
class Front:
    """The line of a device: nothing lies left of it and below it. ``path`` is SVG's, in a box of
    100 by 100."""

    device: str
    path: str
    dots: Sequence[Dot]


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Size against mean divergence, both logarithmic."""

    unit: str
    x: Axis
    y: Axis
    dots: Sequence[Dot]
    fronts: Sequence[Front]
    said: str


@dataclass(frozen=True)
class Panel:
    """A build's mean divergence along the window, as a line in a box of 100 by 100."""

    build: int
    name: str
    device: str
    colour: int
    points: str


@dataclass(frozen=True)
class Panels:
    """Small plots with the same axes."""

    y: Axis
    window: int
    panels: Sequence[Panel]


def scatter(page: Page) -> Scatter:
    """The plot that shows which builds are worth a look."""
    unit, factor = page.scale
    x = axes.logarithmic([e.size * factor for e in page.done])
    y = axes.logarithmic([e.kld for e in page.done])
    away = board.elsewhere(page.done)
    dots = {
        e.name: Dot(
            build=i,
            name=e.name,
            device=one_line(e.device),
            colour=page.places[e.backend],
            x=x.share(e.size * factor),
            y=y.share(e.kld),
            told=told(e, away),
        )
        for i, e in enumerate(page.done)
    }
    fronts = _fronts(page, dots)
    numbered = {dot.name: dot for front in fronts for dot in front.dots}
    names = "; ".join(
        f"{front.device or 'builds'}: {', '.join(dot.name for dot in front.dots)}"
        for front in fronts
    )
    return Scatter(
        unit=unit,
        x=x,
        y=y,
        # those with a number last: they lie above the others
        dots=[*(dot for name, dot in dots.items() if name not in numbered), *numbered.values()],
        fronts=fronts,
        said=f"Scatter plot of file size against mean KL divergence. On the Pareto front, "
        f"smallest first: {names}.",
    )


def _fronts(page: Page, dots: dict[str, Dot]) -> list[Front]:
    """One for each device; lower bounds have lines of their own. The dots are numbered through."""
    candidates, number = board.candidates(page.done), 0
    fronts: list[Front] = []
    taken: list[Place] = []
    for device, bound in sorted({(c.device, c.bound) for c in candidates}):
        steps = picks.front(c for c in candidates if (c.device, c.bound) == (device, bound))
        mine = []
        for candidate in steps:
            number += 1
            dot = replace(dots[candidate.name], number=number)
            others = [(one.x, one.y) for one in dots.values() if one.name != dot.name]
            mine.append(replace(dot, side=side((dot.x, dot.y), [*taken, *others])))
            taken.append(spot((dot.x, dot.y), mine[-1].side))
        if mine:
            fronts.append(Front(device, _stairs(mine), mine))
    return fronts


def side(dot: Place, taken: Sequence[Place]) -> str:
    """The first side of ``dot`` where its number touches nothing of ``taken``: other numbers and
    other dots. Left and below come first: there a front has nothing."""
    for name in SIDES:
        if not any(_touch(spot(dot, name), other) for other in taken):
            return name
    return next(iter(SIDES))


def spot(dot: Place, name: str) -> Place:
    """Where the number on the side ``name`` of ``dot`` stands."""
    right, up = SIDES[name]
    return dot[0] + OFFSET[0] * right, dot[1] + OFFSET[1] * up


def _touch(one: Place, other: Place) -> bool:
    return abs(one[0] - other[0]) < NEAR[0] and abs(one[1] - other[1]) < NEAR[1]


def _stairs(dots: Sequence[Dot]) -> str:
    """From each dot to the right and down to the next; SVG counts from the top."""
    first, *others = dots
    steps = "".join(f"H{dot.x}V{round(100 - dot.y, 2)}" for dot in others)
    return f"M{first.x},0V{round(100 - first.y, 2)}{steps}H100"


def panels(page: Page) -> Panels | None:
    """The divergence along the window of the builds to ship, then of others on their fronts; None
    where none of them has it."""
    wanted = [pick.build for answer in page.decisions for pick in answer.picks]
    wanted += [name for answer in page.decisions for name in answer.front]
    by_name = {e.name: e for e in page.done}
    order = [by_name[name] for name in dict.fromkeys([*wanted, *by_name])]
    chosen = [e for e in order if len(e.profile.get("by_position", ())) > 1][:MOST_PANELS]
    if not chosen:
        return None
    axis = axes.logarithmic([v for e in chosen for v in e.profile["by_position"]])
    made = [
        Panel(page.position(e), e.name, one_line(e.device), page.places[e.backend], _line(e, axis))
        for e in chosen
    ]
    stride = math.ceil(len(axis.ticks) / MOST_PANEL_TICKS)
    few = replace(axis, ticks=axis.ticks[::-1][::stride][::-1])
    return Panels(few, max(e.window for e in chosen), made)


def _line(entry: Entry, axis: Axis) -> str:
    values, places = entry.profile["by_position"], _middles(entry)
    whole = max(entry.window, 1)
    return " ".join(
        f"{round(100 * at / whole, 2)},{round(100 - axis.share(value), 2)}"
        for at, value in zip(places, values, strict=True)
    )


def _middles(entry: Entry) -> list[float]:
    """The middle of each stretch of ``evaluate.profile``: equal, but for the first ones' odd
    positions."""
    count = len(entry.profile["by_position"])
    length, odd = divmod(max(entry.window - 1 - entry.skip, count), count)
    middles, start = [], float(entry.skip)
    for i in range(count):
        middles.append(start + (length + (i < odd)) / 2)
        start += length + (i < odd)
    return middles
