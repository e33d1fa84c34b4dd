"""The fidelity board as a page: one file that opens without a network, with its plots and their
library in it.

Everything that a user, a model or a tool wrote is text: the template escapes it, labels escape what
plotly would read as markup, and JSON within the page cannot end its script. The page's own security
policy forbids it to load anything.

Figures are made once, in the light theme's colours; the page's script replaces each by the dark
theme's.
"""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from phipipe import backends, words
from phipipe.board import board, picks
from phipipe.board.columns import COLUMNS, FRONT, build_words, cell, marks, notes
from phipipe.board.entry import ZERO, Entry, one_line
from phipipe.board.picks import Answer
from phipipe.files import pages
from phipipe.metrics import METRICS
from phipipe.package import figures as report
from phipipe.visible import in_template

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from markupsafe import Markup

# Light → dark. The series are told apart in all common kinds of colour blindness, and contrast with
# the page by at least 3 to 1 in either theme (tests compute both); symbols and dashes tell the
# precision.
INK, MUTED, GRID, LINE, PAGE = "#1b1f24", "#57606a", "#d9dee4", "#8c959f", "#ffffff"
SERIES = {
    "#005599": "#5599ee",  # blue
    "#cc5511": "#ffbb00",  # orange
    "#448877": "#66ddaa",  # green
    "#991155": "#dd7799",  # pink
    "#8844dd": "#ccbbff",  # violet
    "#553300": "#eeff99",  # brown, and lime on the dark page
    "#330000": "#dd4433",  # maroon, and red on the dark page
    "#292929": "#727272",  # grey: backends that this phipipe does not know
}
DARK = {
    **SERIES,
    INK: "#e6edf3",
    MUTED: "#9da7b1",
    GRID: "#30363d",
    LINE: "#7d8590",
    PAGE: "#0d1117",
}
SYMBOLS = {"fp32": "diamond", "fp16": "square", "int8": "triangle-up", "int4": "circle"}
DASHES = {"fp32": "dot", "fp16": "dash", "int8": "dashdot", "int4": "solid"}
REPEATS = (
    "",
    "circle",
    "square",
    "diamond",
    "cross",
    "triangle-up",
)  # beside lines that colour and dash leave alike
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'
LABEL = 34  # characters of a name that a plot shows


def render(entries: Sequence[Entry], title: str = "Fidelity board") -> str:
    """The page's text. Entries may be in any order."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    every = board.ranked(entries)
    done, found = board.done(every), board.answers(every)
    environment = pages.environment(in_template, is_html=True)
    return environment.get_template("board.html.j2").render(
        title=title,
        answers=board.lines(found),
        facts=_facts(done),
        columns=COLUMNS,
        rows=_rows(every, found),
        front=FRONT,
        notes=notes(every),
        picks=found,
        plots=_plots(done, found),
        checks=[_checks(entry) for entry in done],
        provenance=[_provenance(entry) for entry in done],
        colours=embedded(DARK),
        plotly=Markup(get_plotlyjs()) if done else "",  # its own text, unescaped
    )


def embedded(value: object) -> Markup:
    """JSON that can stand in a script element: nothing in it can end the element or start a
    comment."""
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False, sort_keys=True)  # ASCII, so no odd line ends either
    return Markup(text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"}))


def label(text: str, length: int = LABEL) -> str:
    """``text`` where plotly would read tags and entities."""
    shown = one_line(text)
    shown = shown if len(shown) <= length else shown[: length - 1] + "…"
    return html.escape(shown, quote=False)


# --- tables


def _facts(done: Sequence[Entry]) -> list[str]:
    if not done:
        return []
    first, hosts = done[0], {report.host_words(e.host) for e in done}
    where = next(iter(hosts)) if len(hosts) == 1 else f"{len(hosts)} machines"
    return [
        f"{first.source}, {report.number(first.parameters / 1e6)} million parameters",
        f"{first.tokens:,} tokens of “{first.text}” in windows of {first.window:,}",
        f"the original’s perplexity is {report.number(first.baseline_ppl)}",
        f"speed measured on {where}",
    ]


def _rows(every: Sequence[Entry], found: Sequence[Answer]) -> list[dict[str, Any]]:
    away, (best, rivals) = board.elsewhere(every), board.standing(found)
    return [
        {
            "entry": entry,
            "build": build_words(entry),
            "error": one_line(entry.error or ""),
            "cells": []
            if entry.error is not None
            else [{"text": cell(c, entry, away), "value": c.value(entry)} for c in COLUMNS],
            "front": entry.name in best,
            "behind": rivals.get(entry.name, ""),
            "score": report.number(entry.score) if entry.error is None else "",
            "colour": _colour(entry),
        }
        for entry in every
    ]


def _checks(entry: Entry) -> dict[str, Any]:
    sanity: Mapping[str, Any] = entry.sanity
    ended = sanity.get("answers_ended", [])
    greedy, repetition = sanity.get("greedy_agreement"), sanity.get("repetition")
    return {
        "name": entry.name,
        "flags": [sanity.get("tokenizer_equal"), sanity.get("chat_template_equal")],
        "greedy": "–" if greedy is None else f"{report.number(100 * greedy)} %",
        "ended": f"{sum(map(bool, ended))} of {len(ended)}" if ended else "–",
        "repetition": "–" if repetition is None else f"{report.number(100 * repetition)} %",
    }


def _provenance(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "facts": {
            "Runtime": entry.backend_title or entry.backend,
            "Scheme": entry.scheme or entry.precision,
            "Device": f"{entry.device} ({entry.api}); measured on target: {entry.on_target}",
            "Host of the speeds": report.host_words(entry.host),
            "Prompt": f"{entry.prompt_tokens} tokens",
            "Source": entry.source,
            "Source digest": entry.source_digest,
            "Text": f"{entry.text}, {entry.tokens:,} tokens, window {entry.window:,}, first "
            f"{entry.skip} unscored",
            "Text digest": entry.text_digest,
            "phipipe": entry.phipipe,
        },
        "tools": entry.tools,
        "steps": entry.keys,
    }


# --- plots


def _colour(entry: Entry) -> str:
    """Each backend keeps its own everywhere."""
    known = entry.backend in backends.names()
    place = backends.load(entry.backend).colour if known else None
    return tuple(SERIES)[-1 if place is None else place]


def _hover(entry: Entry, away: frozenset[str]) -> str:
    figures = [f"{c.title}: {cell(c, entry, away)}" for c in COLUMNS if c.value(entry) is not None]
    return "<br>".join(
        [f"<b>{label(entry.name)}</b>", label(build_words(entry), 80), *map(label, figures)]
    )


def _plots(done: Sequence[Entry], found: Sequence[Answer]) -> list[dict[str, Any]]:
    """Every plot: its heading, what it shows in words, and its figure as JSON."""
    if not done:
        return []
    unit, factor = ("GiB", 1.0) if max(e.size for e in done) >= 1 else ("MiB", 1024.0)
    names = "; ".join(
        f"{answer.where}: {', '.join(answer.front)}" for answer in found if answer.front
    )
    lines = "the line" if len({e.device for e in done}) == 1 else "its device’s line"
    plots = [
        (
            "front",
            "Size against fidelity",
            f"Left is smaller, down is closer to the original. No build lies left of and below "
            f"{lines}.",
            f"Scatter plot of file size against mean KL divergence. On the Pareto front, "
            f"smallest first: {names}.",
            _scatter(done, found, unit, factor),
        )
    ]
    for name, heading, metric, scale, axis in (
        (
            "decode",
            "Answer speed",
            "decode_tokens_per_s",
            1.0,
            "tokens per second, after the first",
        ),
        ("prefill", "Prompt speed", "prefill_tokens_per_s", 1.0, "prompt tokens per second"),
        (
            "memory",
            "Peak memory",
            "peak_memory_gib",
            factor,
            f"{unit}, runtime and interpreter included",
        ),
        ("size", "File size", "size_gib", factor, f"{unit}, all files that the runtime needs"),
    ):
        if bars := [e for e in done if metric in e.metrics]:
            better = METRICS[metric].better
            said = f"Bar chart of {axis}, {words.counted(len(bars), 'build')}."
            alike = not board.elsewhere(bars) and {e.on_target for e in bars} == {"true"}
            if metric == "size_gib" or (
                alike and len({e.device for e in bars}) == 1
            ):  # else they do not compare
                best = (max if better == "higher" else min)(bars, key=lambda e: e.metrics[metric])
                said += f" Best: {best.name}."
            caption = f"{axis[0].upper()}{axis[1:]}; {better} is better."
            if metric != "size_gib" and notes(bars):
                caption += " Hatched: read with care; the table’s notes explain the signs."
            plots.append((name, heading, caption, said, _bars(bars, metric, scale)))
    if any(e.profile.get("by_position") for e in done):
        said = f"Lines of mean KL divergence along the window, one for each of {len(done)} builds."
        caption = (
            "Mean KL divergence by position in the window: does the build drift as the "
            "context grows?"
        )
        plots.append(("position", "Divergence along the window", caption, said, _positions(done)))
    if any(e.profile.get("quantiles") for e in done):
        said = (
            f"Quantiles of KL divergence over all positions, one line for each of "
            f"{len(done)} builds."
        )
        caption = (
            "How far the worst positions are off: at 99 %, one position in a hundred is worse."
        )
        plots.append(
            ("quantiles", "Distribution of the divergence", caption, said, _quantiles(done))
        )
    return [
        {
            "id": name,
            "heading": heading,
            "caption": caption,
            "said": said,
            "figure": embedded(_plain(figure)),
        }
        for name, heading, caption, said, figure in plots
    ]


def _plain(figure: go.Figure) -> Mapping[str, Any]:
    made: Mapping[str, Any] = json.loads(figure.to_json())
    return made


def _figure(height: int, **layout: Any) -> go.Figure:
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


def _scatter(done: Sequence[Entry], found: Sequence[Answer], unit: str, factor: float) -> go.Figure:
    import plotly.graph_objects as go

    figure, away, (best, _) = (
        _figure(520, hovermode="closest"),
        board.elsewhere(done),
        board.standing(found),
    )
    candidates = board.candidates(done)
    line: dict[str, Any] = {"color": LINE, "width": 2, "shape": "hv"}
    for i, device in enumerate(sorted({(c.device, c.bound) for c in candidates})):
        steps = picks.front(c for c in candidates if (c.device, c.bound) == device)
        figure.add_scatter(
            x=[(c.size or 0.0) * factor for c in steps],
            y=[max(c.kld or 0.0, ZERO) for c in steps],
            mode="lines",
            line=line,
            name="Pareto front",
            legendgroup="front",
            showlegend=i == 0,
            hoverinfo="skip",
        )
    for backend in sorted({e.backend for e in done}):
        mine = [e for e in done if e.backend == backend]
        figure.add_scatter(
            x=[e.size * factor for e in mine],
            y=[max(e.kld, ZERO) for e in mine],
            mode="markers",
            legendgroup=backend,
            showlegend=False,
            marker={
                "color": _colour(mine[0]),
                "symbol": [SYMBOLS.get(e.precision, "x") for e in mine],
                "size": [13 if e.name in best else 10 for e in mine],
                "line": {"color": PAGE, "width": 1},
                "opacity": 1,
            },
            hovertext=[_hover(e, away) for e in mine],
            hoverinfo="text",
        )
        # colour means backend, shape means precision: a key for each
        line = {"color": _colour(mine[0]), "width": 9}
        figure.add_scatter(
            x=[None], y=[None], mode="lines", line=line, name=label(backend), legendgroup=backend
        )
    for precision in dict.fromkeys(e.precision for e in sorted(done, key=lambda e: e.precision)):
        marker = {"symbol": SYMBOLS.get(precision, "x"), "color": MUTED, "size": 10}
        figure.add_trace(
            go.Scatter(x=[None], y=[None], mode="markers", name=label(precision), marker=marker)
        )
    # the script places these: where they fit depends on the window's width. Left of and below all
    # lines there is room
    outer = picks.front(candidates)
    labels = [[(c.size or 0.0) * factor, max(c.kld or 0.0, ZERO), one_line(c.name)] for c in outer]
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


def _size_ticks(low: float, high: float) -> dict[str, Any]:
    """Round sizes between two powers of ten; plotly's own choice is bare digits such as 2 and 5."""
    steps = (
        [1.0, 1.5, 2, 3, 4, 5, 6, 8] if high - low < 1 else [1.0, 2, 5] if high - low < 2 else [1.0]
    )
    found = [s * 10.0**n for n in range(math.floor(low), math.ceil(high) + 1) for s in steps]
    values = [v for v in found if low <= math.log10(v) <= high]
    return {"tickvals": values, "ticktext": [f"{v:g}" for v in values]}


def _log_ticks(values: Sequence[float]) -> dict[str, Any]:
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


def _bars(done: Sequence[Entry], metric: str, factor: float) -> go.Figure:
    away = board.elsewhere(done)
    signs = ["" if metric == "size_gib" else marks(e, away) for e in done]
    figure = _figure(70 + 27 * len(done), bargap=0.25, showlegend=False)
    values = [e.metrics[metric] * factor for e in done]
    spread = [
        [end * factor for end in e.spread.get(metric, (v / factor, v / factor))]
        for e, v in zip(done, values, strict=True)
    ]
    known = any(metric in e.spread for e in done)
    figure.add_bar(
        orientation="h",
        x=values,
        y=[label(e.name) for e in done],
        marker={
            "color": [_colour(e) for e in done],
            "pattern": {"shape": ["/" if sign else "" for sign in signs]},
        },
        error_x={
            "array": [max(high - v, 0) for v, (_, high) in zip(values, spread, strict=True)],
            "arrayminus": [max(v - low, 0) for v, (low, _) in zip(values, spread, strict=True)],
            "color": MUTED,
            "thickness": 1.2,
            "width": 3,
        }
        if known
        else None,
        hovertext=[_hover(e, away) for e in done],
        hoverinfo="text",
    )
    # figures stand in a column of their own: beside the bars they would cover the whiskers
    figure.add_scatter(
        x=[1] * len(done),
        y=[label(e.name) for e in done],
        xaxis="x2",
        mode="text",
        text=[f"{report.number(value)} {sign}" for value, sign in zip(values, signs, strict=True)],
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure.update_layout(
        xaxis2={"overlaying": "x", "range": [0, 1], "visible": False, "fixedrange": True}
    )
    figure.update_layout(margin={"l": 10, "r": 62, "b": 30})
    figure.update_xaxes(rangemode="tozero", nticks=6, selector={"overlaying": None})
    figure.update_yaxes(
        type="category", autorange="reversed", showgrid=False, tickfont={"color": INK}
    )
    return figure


def _lines(
    done: Sequence[Entry], curves: Sequence[tuple[Sequence[float], Sequence[float]]], suffix: str
) -> go.Figure:
    # the script makes room for the legend: its rows depend on the window's width
    figure = _figure(374 + 20 * len(done), hovermode="closest", meta={"legend": len(done)})
    figure.update_layout(legend={"entrywidth": 165, "entrywidthmode": "pixels"})
    seen: Counter[tuple[str, str]] = Counter()
    for entry, (x, y) in zip(done, curves, strict=True):
        mark = REPEATS[seen[_colour(entry), entry.precision] % len(REPEATS)]
        seen[_colour(entry), entry.precision] += 1
        words = [
            f"<b>{label(entry.name)}</b><br>{report.number(at)}{suffix}: {report.number(v)} nats"
            for at, v in zip(x, y, strict=True)
        ]
        figure.add_scatter(
            x=list(x),
            y=[max(v, ZERO) for v in y],
            mode="lines+markers" if mark else "lines",
            marker={"symbol": mark or "circle", "size": 7, "maxdisplayed": 9},
            name=label(entry.name, 26),
            line={
                "color": _colour(entry),
                "dash": DASHES.get(entry.precision, "solid"),
                "width": 2,
            },
            hovertext=words,
            hoverinfo="text",
        )
    values = [v for _, y in curves for v in y]
    figure.update_yaxes(type="log", title="KL divergence, nats", **_log_ticks(values))
    return figure


def _positions(done: Sequence[Entry]) -> go.Figure:
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


def _quantiles(done: Sequence[Entry]) -> go.Figure:
    having = [e for e in done if len(e.profile.get("quantiles", ())) > 1]
    curves = []
    for entry in having:
        y = entry.profile["quantiles"]
        curves.append(([100 * i / (len(y) - 1) for i in range(len(y))], y))
    figure = _lines(having, curves, " %")
    figure.update_xaxes(title="share of positions that are closer, %", range=[0, 100.5])
    return figure
