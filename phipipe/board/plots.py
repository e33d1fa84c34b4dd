"""The plots of a board's page: which there are, and what each shows in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phipipe import words
from phipipe.board import board
from phipipe.board import figures as drawn
from phipipe.board.candidates import Answer
from phipipe.board.columns import notes
from phipipe.board.entry import Entry
from phipipe.metrics import METRICS

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One plot: ``said`` is for those who do not see it, ``figure`` is JSON."""

    id: str
    heading: str
    caption: str
    said: str
    figure: Markup


def plots(done: Sequence[Entry], decisions: Sequence[Answer]) -> list[Plot]:
    """Every plot of these builds, as far as there is something to show."""
    if not done:
        return []
    unit, factor = ("GiB", 1.0) if max(e.size for e in done) >= 1 else ("MiB", 1024.0)
    return [_front(done, decisions, unit, factor), *_bars(done, unit, factor), *_curves(done)]


def embedded(value: object) -> Markup:
    """JSON that can stand in a script element: nothing in it can end the element or start a
    comment."""
    from markupsafe import Markup

    text = json.dumps(value, allow_nan=False, sort_keys=True)  # ASCII, so no odd line ends either
    return Markup(text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"}))


def _embedded(figure: go.Figure) -> Markup:
    return embedded(json.loads(figure.to_json()))


def _front(done: Sequence[Entry], decisions: Sequence[Answer], unit: str, factor: float) -> Plot:
    names = "; ".join(
        f"{answer.where}: {', '.join(answer.front)}" for answer in decisions if answer.front
    )
    lines = "the line" if len({e.device for e in done}) == 1 else "its device’s line"
    return Plot(
        id="front",
        heading="Size against fidelity",
        caption=f"Left is smaller, down is closer to the original. No build lies left of and "
        f"below {lines}.",
        said=f"Scatter plot of file size against mean KL divergence. On the Pareto front, "
        f"smallest first: {names}.",
        figure=_embedded(drawn.scatter(done, decisions, unit, factor)),
    )


def _bars(done: Sequence[Entry], unit: str, factor: float) -> Iterator[Plot]:
    """Bar charts of what was measured of any build."""
    rate, memory = "tokens per second, after the first", f"{unit}, runtime and interpreter included"
    files = f"{unit}, all files that the runtime needs"
    for name, heading, metric, scale, axis in (
        ("decode", "Answer speed", "decode_tokens_per_s", 1.0, rate),
        ("prefill", "Prompt speed", "prefill_tokens_per_s", 1.0, "prompt tokens per second"),
        ("memory", "Peak memory", "peak_memory_gib", factor, memory),
        ("size", "File size", "size_gib", factor, files),
    ):
        if bars := [e for e in done if metric in e.metrics]:
            yield Plot(
                id=name,
                heading=heading,
                caption=_caption(bars, metric, axis),
                said=_said(bars, metric, axis),
                figure=_embedded(drawn.bars(bars, metric, scale)),
            )


def _caption(bars: Sequence[Entry], metric: str, axis: str) -> str:
    caption = f"{axis[0].upper()}{axis[1:]}; {METRICS[metric].better} is better."
    if metric != "size_gib" and notes(bars):
        caption += " Hatched: read with care; the table’s notes explain the signs."
    return caption


def _said(bars: Sequence[Entry], metric: str, axis: str) -> str:
    sentence = f"Bar chart of {axis}, {words.counted(len(bars), 'build')}."
    alike = not board.elsewhere(bars) and {e.on_target for e in bars} == {"true"}
    if metric != "size_gib" and not (alike and len({e.device for e in bars}) == 1):
        return sentence  # they do not compare
    of = max if METRICS[metric].better == "higher" else min
    return f"{sentence} Best: {of(bars, key=lambda e: e.metrics[metric]).name}."


def _curves(done: Sequence[Entry]) -> Iterator[Plot]:
    """Where the divergence lies, of builds that say so."""
    if any(e.profile.get("by_position") for e in done):
        yield Plot(
            id="position",
            heading="Divergence along the window",
            caption="Mean KL divergence by position in the window: does the build drift as the "
            "context grows?",
            said=f"Lines of mean KL divergence along the window, one for each of {len(done)} "
            f"builds.",
            figure=_embedded(drawn.positions(done)),
        )
    if any(e.profile.get("quantiles") for e in done):
        yield Plot(
            id="quantiles",
            heading="Distribution of the divergence",
            caption="How far the worst positions are off: at 99 %, one position in a hundred is "
            "worse.",
            said=f"Quantiles of KL divergence over all positions, one line for each of "
            f"{len(done)} builds.",
            figure=_embedded(drawn.quantiles(done)),
        )
