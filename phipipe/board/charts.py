"""The page's charts as data: what lies where, in percent, and the words beside it.

A template draws them with boxes and lines of HTML and SVG. So they need no script, keep the size of
their text at any width, follow the theme, and print.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from phipipe import words
from phipipe.board import axes, board
from phipipe.board.axes import Axis
from phipipe.board.candidates import Answer
from phipipe.board.columns import COLUMNS, cell, marks, notes
from phipipe.board.entry import Entry, one_line
from phipipe.metrics import METRICS
from phipipe.package import figures

MOST_ROWS = 14  # further ones open at a click


@dataclass(frozen=True, kw_only=True)
class Row:
    """A build in a chart: a dot or the end of a bar at ``at``, and its range; all in percent."""

    build: int  # its place on the board
    name: str
    device: str
    colour: int
    at: float
    text: str
    low: float | None = None
    high: float | None = None
    far: float | None = None  # the single worst value
    careful: bool = False  # read with care: a sign says why


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Builds under each other on one axis, the best first; ``said`` is for those who do not see
    it."""

    id: str
    heading: str
    caption: str
    said: str
    axis: Axis
    rows: Sequence[Row]
    has_bars: bool

    @property
    def first(self) -> Sequence[Row]:
        """Those that are always shown."""
        return self.rows if len(self.rows) <= MOST_ROWS + 2 else self.rows[:MOST_ROWS]

    @property
    def further(self) -> Sequence[Row]:
        return self.rows[len(self.first) :]


@dataclass(frozen=True)
class Page:
    """The builds that charts show, in the board's order, and what is known of all of them."""

    done: Sequence[Entry]
    decisions: Sequence[Answer]
    places: Mapping[str, int]  # backend → colour

    @property
    def scale(self) -> tuple[str, float]:
        """The unit of sizes, and how many of it are a GiB."""
        return ("GiB", 1.0) if max(e.size for e in self.done) >= 1 else ("MiB", 1024.0)

    def position(self, entry: Entry) -> int:
        return next(i for i, other in enumerate(self.done) if other.name == entry.name)


def charts(page: Page) -> Iterator[Chart]:
    """Every chart with a row for each build that has its figure."""
    unit, factor = page.scale
    yield _divergence(page)
    for name, heading, metric, scale, axis in (
        ("decode", "Answer speed", "decode_tokens_per_s", 1.0, "tokens per second"),
        ("prefill", "Prompt speed", "prefill_tokens_per_s", 1.0, "prompt tokens per second"),
        ("memory", "Peak memory", "peak_memory_gib", factor, f"{unit}, the whole process"),
    ):
        having = [e for e in page.done if metric in e.metrics]
        if having:
            yield _figure(page, (name, heading, axis), having, metric, scale)


def _divergence(page: Page) -> Chart:
    ordered = sorted(page.done, key=lambda e: e.kld)
    spans = [[e.metrics.get(name) for name in _QUANTILES] for e in ordered]
    values = [v for span in spans for v in span if v is not None]
    axis = axes.logarithmic([*values, *(e.kld for e in ordered)])
    column = next(c for c in COLUMNS if c.name == "kld_mean")
    rows = [
        Row(
            build=page.position(e),
            name=e.name,
            device=one_line(e.device),
            colour=page.places[e.backend],
            at=axis.share(e.kld),
            text=column.text(e).partition(" ± ")[0],
            low=_share(axis, low),
            high=_share(axis, high),
            far=_share(axis, far),
        )
        for e, (low, high, far) in zip(ordered, spans, strict=True)
    ]
    caption = "KL divergence in nats, logarithmic; further left is closer to the original."
    if any(row.high is not None for row in rows):
        caption += (
            " The dot is the mean. The line goes from the median to 99 % of all positions, "
            "the tick is the worst one."
        )
    closest = f"Closest: {ordered[0].name}."
    return Chart(
        id="divergence",
        heading="Distance from the original",
        caption=caption,
        said=f"Dot chart of KL divergence, {words.counted(len(rows), 'build')}. {closest}",
        axis=axis,
        rows=rows,
        has_bars=False,
    )


_QUANTILES = ("kld_median", "kld_p99", "kld_max")


def _share(axis: Axis, value: float | None) -> float | None:
    return None if value is None else axis.share(value)


def _figure(
    page: Page, about: tuple[str, str, str], having: Sequence[Entry], metric: str, factor: float
) -> Chart:
    """Bars from zero; dots where values span a decade, for a bar has no length there."""
    name, heading, unit = about
    ordered = sorted(
        having, key=lambda e: e.metrics[metric], reverse=METRICS[metric].better == "higher"
    )
    ends = {e.name: [factor * end for end in e.spread.get(metric, ())] for e in ordered}
    values = [factor * e.metrics[metric] for e in ordered]
    axis = axes.fitting([*values, *(end for pair in ends.values() for end in pair)])
    away = board.elsewhere(page.done)
    signs = {e.name: marks(e, away) for e in ordered}
    rows = [
        Row(
            build=page.position(e),
            name=e.name,
            device=one_line(e.device),
            colour=page.places[e.backend],
            at=axis.share(value),
            text=f"{figures.number(value)} {signs[e.name]}".strip(),
            low=axis.share(min(ends[e.name])) if ends[e.name] else None,
            high=axis.share(max(ends[e.name])) if ends[e.name] else None,
            careful=bool(signs[e.name]),
        )
        for e, value in zip(ordered, values, strict=True)
    ]
    return Chart(
        id=name,
        heading=heading,
        caption=_caption(ordered, metric, unit, axis),
        said=_said(ordered, metric, unit),
        axis=axis,
        rows=rows,
        has_bars=not axis.is_log,
    )


def _caption(shown: Sequence[Entry], metric: str, unit: str, axis: Axis) -> str:
    scale = ", logarithmic" if axis.is_log else ""
    better = METRICS[metric].better
    caption = f"{unit[0].upper()}{unit[1:]}{scale}; {better} is better."
    if any(metric in e.spread for e in shown):
        caption += " The line is the range of repeated runs."
    if notes(shown):
        caption += " Pale: read with care; the signs are explained below the table."
    return caption


def _said(shown: Sequence[Entry], metric: str, unit: str) -> str:
    sentence = f"Chart of {unit}, {words.counted(len(shown), 'build')}."
    alike = not board.elsewhere(shown) and {e.on_target for e in shown} == {"true"}
    if not alike or len({e.device for e in shown}) > 1:
        return sentence  # they do not compare
    return f"{sentence} Best: {shown[0].name}."


def told(entry: Entry, away: frozenset[str]) -> str:
    """A build's first figures in one line, beside its dot."""
    columns = [c for c in COLUMNS if c.name in _TOLD and c.value(entry) is not None]
    return ", ".join(_TOLD[c.name].format(cell(c, entry, away)) for c in columns)


_TOLD = {
    "size_gib": "{}",
    "kld_mean": "KLD {} nats",
    "decode_tokens_per_s": "{} tokens/s",
}
