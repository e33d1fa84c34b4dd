"""The figures of a board's page, as plotly draws them.

They are made once, in the light theme's colours; the page's script replaces each by the dark
theme's. Labels escape what plotly would read as markup.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from phipipe.board import board, picks
from phipipe.board.candidates import Answer, Candidate
from phipipe.board.colours import DASHES, GRID, INK, LINE, MUTED, PAGE, REPEATS, SYMBOLS
from phipipe.board.colours import of_entry as colour_of
from phipipe.board.columns import COLUMNS, build_words, cell, marks
from phipipe.board.entry import ZERO, Entry, one_line
from phipipe.package import figures

if TYPE_CHECKING:
    import plotly.graph_objects as go

Axis = Mapping[str, object]  # settings of an axis or a bar, as plotly has them
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'
LABEL = 34  # characters of a name that a plot shows


def label(text: str, length: int = LABEL) -> str:
    """``text`` where plotly would read tags and entities."""
    shown = one_line(text)
    shown = shown if len(shown) <= length else shown[: length - 1] + "…"
    return html.escape(shown, quote=False)


def scatter(
    done: Sequence[Entry], decisions: Sequence[Answer], unit: str, factor: float
) -> go.Figure:
    """Size against divergence; sizes are shown in ``unit``, which is GiB times ``factor``."""
    figure, candidates = _figure(520, hovermode="closest"), board.candidates(done)
    _add_fronts(figure, candidates, factor)
    _add_builds(figure, done, board.standing(decisions)[0], factor)
    _add_key(figure, done)
    # the script places these: where they fit depends on the window's width. Left of and below all
    # lines there is room
    labels = [
        [(c.size or 0.0) * factor, max(c.kld or 0.0, ZERO), one_line(c.name)]
        for c in picks.front(candidates)
    ]
    figure.update_layout(meta={"labels": labels})
    every = [math.log10(e.size * factor) for e in done]
    width = max(max(every) - min(every), 0.3)
    ends = [min(every) - 0.3 * width, max(every) + 0.08 * width]  # labels of the front go left
    figure.update_xaxes(
        type="log", title=f"size, {unit} (logarithmic)", range=ends, **_size_ticks(*ends)
    )
    figure.update_yaxes(
        type="log", title="mean KL divergence, nats", **_log_ticks([e.kld for e in done])
    )
    return figure


def _add_fronts(figure: go.Figure, candidates: Sequence[Candidate], factor: float) -> None:
    """A line through each device's front; lower bounds have lines of their own."""
    for i, device in enumerate(sorted({(c.device, c.bound) for c in candidates})):
        steps = picks.front(c for c in candidates if (c.device, c.bound) == device)
        figure.add_scatter(
            x=[(c.size or 0.0) * factor for c in steps],
            y=[max(c.kld or 0.0, ZERO) for c in steps],
            mode="lines",
            line={"color": LINE, "width": 2, "shape": "hv"},
            name="Pareto front",
            legendgroup="front",
            showlegend=i == 0,
            hoverinfo="skip",
        )


def _add_builds(
    figure: go.Figure, done: Sequence[Entry], best: Collection[str], factor: float
) -> None:
    """A point for each build; those named in ``best`` are larger."""
    away = board.elsewhere(done)
    for backend in sorted({e.backend for e in done}):
        mine = [e for e in done if e.backend == backend]
        figure.add_scatter(
            x=[e.size * factor for e in mine],
            y=[max(e.kld, ZERO) for e in mine],
            mode="markers",
            legendgroup=backend,
            showlegend=False,
            marker={
                "color": colour_of(mine[0]),
                "symbol": [SYMBOLS.get(e.precision, "x") for e in mine],
                "size": [13 if e.name in best else 10 for e in mine],
                "line": {"color": PAGE, "width": 1},
                "opacity": 1,
            },
            hovertext=[_hover(e, away) for e in mine],
            hoverinfo="text",
        )
        # colour means backend, shape means precision: a key for each
        line = {"color": colour_of(mine[0]), "width": 9}
        figure.add_scatter(
            x=[None], y=[None], mode="lines", line=line, name=label(backend), legendgroup=backend
        )


def _add_key(figure: go.Figure, done: Sequence[Entry]) -> None:
    """What the points' shapes mean."""
    for precision in sorted({e.precision for e in done}):
        marker = {"symbol": SYMBOLS.get(precision, "x"), "color": MUTED, "size": 10}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=label(precision), marker=marker)


def bars(done: Sequence[Entry], metric: str, factor: float) -> go.Figure:
    """A bar for each build, with the ends of its spread; its figure stands beside it."""
    away = board.elsewhere(done)
    signs = ["" if metric == "size_gib" else marks(e, away) for e in done]
    values = [e.metrics[metric] * factor for e in done]
    names = [label(e.name) for e in done]
    figure = _figure(70 + 27 * len(done), bargap=0.25, showlegend=False)
    figure.add_bar(
        orientation="h",
        x=values,
        y=names,
        marker={
            "color": [colour_of(e) for e in done],
            "pattern": {"shape": ["/" if sign else "" for sign in signs]},
        },
        error_x=_whiskers(done, metric, factor),
        hovertext=[_hover(e, away) for e in done],
        hoverinfo="text",
    )
    # figures stand in a column of their own: beside the bars they would cover the whiskers
    figure.add_scatter(
        x=[1] * len(done),
        y=names,
        xaxis="x2",
        mode="text",
        text=[f"{figures.number(value)} {sign}" for value, sign in zip(values, signs, strict=True)],
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
    )
    second = {"overlaying": "x", "range": [0, 1], "visible": False, "fixedrange": True}
    figure.update_layout(xaxis2=second)
    figure.update_layout(margin={"l": 10, "r": 62, "b": 30})
    figure.update_xaxes(rangemode="tozero", nticks=6, selector={"overlaying": None})
    figure.update_yaxes(
        type="category", autorange="reversed", showgrid=False, tickfont={"color": INK}
    )
    return figure


def _whiskers(done: Sequence[Entry], metric: str, factor: float) -> Axis | None:
    """How far repetitions lie beside each figure; None if nobody repeated it."""
    if not any(metric in e.spread for e in done):
        return None
    spread = []
    for entry in done:
        value = entry.metrics[metric] * factor
        low, high = (end * factor for end in entry.spread.get(metric, (value / factor,) * 2))
        spread.append((max(value - low, 0), max(high - value, 0)))
    return {
        "array": [above for _, above in spread],
        "arrayminus": [below for below, _ in spread],
        "color": MUTED,
        "thickness": 1.2,
        "width": 3,
    }


def _lines(
    done: Sequence[Entry], curves: Sequence[tuple[Sequence[float], Sequence[float]]], suffix: str
) -> go.Figure:
    # the script makes room for the legend: its rows depend on the window's width
    figure = _figure(374 + 20 * len(done), hovermode="closest", meta={"legend": len(done)})
    figure.update_layout(legend={"entrywidth": 165, "entrywidthmode": "pixels"})
    seen: Counter[tuple[str, str]] = Counter()
    for entry, (x, y) in zip(done, curves, strict=True):
        mark = REPEATS[seen[colour_of(entry), entry.precision] % len(REPEATS)]
        seen[colour_of(entry), entry.precision] += 1
        shown = zip(map(figures.number, x), map(figures.number, y), strict=True)
        words = [f"<b>{label(entry.name)}</b><br>{at}{suffix}: {v} nats" for at, v in shown]
        figure.add_scatter(
            x=list(x),
            y=[max(v, ZERO) for v in y],
            mode="lines+markers" if mark else "lines",
            marker={"symbol": mark or "circle", "size": 7, "maxdisplayed": 9},
            name=label(entry.name, 26),
            line={
                "color": colour_of(entry),
                "dash": DASHES.get(entry.precision, "solid"),
                "width": 2,
            },
            hovertext=words,
            hoverinfo="text",
        )
    values = [v for _, y in curves for v in y]
    figure.update_yaxes(type="log", title="KL divergence, nats", **_log_ticks(values))
    return figure


def positions(done: Sequence[Entry]) -> go.Figure:
    curves = [(_middles(e), e.profile["by_position"]) for e in done if e.profile.get("by_position")]
    figure = _lines([e for e in done if e.profile.get("by_position")], curves, "")
    figure.update_xaxes(title="position in the window, tokens", rangemode="tozero")
    return figure


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


def quantiles(done: Sequence[Entry]) -> go.Figure:
    having = [e for e in done if len(e.profile.get("quantiles", ())) > 1]
    curves = []
    for entry in having:
        y = entry.profile["quantiles"]
        curves.append(([100 * i / (len(y) - 1) for i in range(len(y))], y))
    figure = _lines(having, curves, " %")
    figure.update_xaxes(title="share of positions that are closer, %", range=[0, 100.5])
    return figure


def _hover(entry: Entry, away: frozenset[str]) -> str:
    figures = [f"{c.title}: {cell(c, entry, away)}" for c in COLUMNS if c.value(entry) is not None]
    return "<br>".join(
        [f"<b>{label(entry.name)}</b>", label(build_words(entry), 80), *map(label, figures)]
    )


def _figure(height: int, **layout: object) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 13, "family": FONT},
        margin={"l": 64, "r": 20, "t": 14, "b": 56},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "font": {"size": 12}},
        hoverlabel={"align": "left"},
        **layout,
    )
    axis = {
        "gridcolor": GRID,
        "linecolor": LINE,
        "zeroline": False,
        "tickfont": {"color": MUTED},
        "title_standoff": 8,
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis, automargin=True)
    return figure


def _size_ticks(low: float, high: float) -> Axis:
    """Round sizes between two powers of ten; plotly's own choice is bare digits such as 2 and 5."""
    steps = (
        [1.0, 1.5, 2, 3, 4, 5, 6, 8] if high - low < 1 else [1.0, 2, 5] if high - low < 2 else [1.0]
    )
    ticks = [s * 10.0**n for n in range(math.floor(low), math.ceil(high) + 1) for s in steps]
    values = [v for v in ticks if low <= math.log10(v) <= high]
    return {"tickvals": values, "ticktext": [f"{v:g}" for v in values]}


def _log_ticks(values: Sequence[float]) -> Axis:
    """A logarithmic axis in powers of ten that has a place for 0, and says so."""
    logs = [math.log10(max(value, ZERO)) for value in values]
    low, high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    step = max(1, math.ceil((high - low) / 7))
    powers = [n for n in range(high, low - 1, -step) if n > -12]
    names = [f"10<sup>{n}</sup>" if n < -2 else f"{10.0**n:g}" for n in powers]
    if min(values) <= ZERO:
        powers, names = [*powers, -12], [*names, "0 (≤ 10<sup>−12</sup>)"]
    pad = 0.06 * (high - low)
    return {
        "tickvals": [10.0**n for n in powers],
        "ticktext": names,
        "range": [min(logs) - pad, max(logs) + pad],
    }
