"""The plot of a choice of widths: what is predicted at each size, the files that were built, and
the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phipipe.board import axes, plots
from phipipe.board.axes import Axis
from phipipe.package import figures
from phipipe.tuning.results import Tuned
from phipipe.words import GIB, MIB

WIDER = 1.3  # the curve is shown up to so much beyond the largest file
CLOSER = 8.0  # and down to so much less than the least divergence of a file


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A built file: percent from the left and from the bottom; ``expected``: where its divergence
    was predicted; ``side``: where its number has room."""

    number: int
    name: str
    told: str
    x: float
    y: float
    expected: float | None
    side: str
    best: bool


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A line at a size (``along`` "x") or at a divergence ("y"), in percent."""

    along: str
    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Size against mean KL divergence; ``line``: the predicted curve, in a box of 100 by 100."""

    unit: str
    x: Axis
    y: Axis
    line: str
    marks: Sequence[Mark]
    limit: Limit | None
    said: str


def plot(tuned: Tuned) -> Plot:
    """The plot of one build."""
    unit, factor = _unit(tuned)
    curve, gate = _near(tuned), _gate(tuned)
    told = [t.predicted_kld for t in tuned.trials if t.predicted_kld is not None]
    sizes = [*(size for size, _ in curve), *(trial.size_bytes for trial in tuned.trials)]
    if tuned.limit_bytes is not None and tuned.limit_bytes <= WIDER * max(sizes):
        sizes.append(tuned.limit_bytes)
    x = axes.logarithmic(size / factor for size in sizes)
    klds = [*(kld for _, kld in curve), *(trial.kld for trial in tuned.trials), *told]
    y = axes.fitting([*klds, *([] if gate is None else [gate])])
    places = [(x.share(size / factor), round(100 - y.share(kld), 2)) for size, kld in curve]
    return Plot(
        unit=unit,
        x=x,
        y=y,
        line=" ".join(dict.fromkeys(f"{across},{down}" for across, down in places)),
        marks=_marks(tuned, x, y, factor),
        limit=_limit(tuned, x, y, factor, max(sizes)),
        said=_said(tuned),
    )


def shown_size(size_bytes: float) -> str:
    """``2.15 GiB``."""
    return " ".join(figures.size(size_bytes / GIB))


def _unit(tuned: Tuned) -> tuple[str, int]:
    return ("GiB", GIB) if max(t.size_bytes for t in tuned.trials) >= GIB else ("MiB", MIB)


def _near(tuned: Tuned) -> list[tuple[int, float]]:
    """The part of the predicted curve that lies around the files."""
    largest = WIDER * max(trial.size_bytes for trial in tuned.trials)
    least = min(trial.kld for trial in tuned.trials) / CLOSER
    return [(size, kld) for size, kld in tuned.predicted() if size <= largest and kld >= least]


def _gate(tuned: Tuned) -> float | None:
    gate = tuned.build.recipe.evaluate.gates.get("kld_mean") if tuned.aim.by_gates else None
    return gate.max if gate else None


def _marks(tuned: Tuned, x: Axis, y: Axis, factor: int) -> list[Mark]:
    places = [(x.share(t.size_bytes / factor), y.share(t.kld)) for t in tuned.trials]
    taken: list[plots.Place] = []
    marks = []
    for number, (trial, place) in enumerate(zip(tuned.trials, places, strict=True), 1):
        side = plots.side(place, [*taken, *(other for other in places if other != place)])
        taken.append(plots.spot(place, side))
        expected = trial.predicted_kld
        told = f"{shown_size(trial.size_bytes)}, {figures.number(trial.kld)} nats"
        if expected is not None:
            told += f", predicted {figures.number(expected)}"
        marks.append(
            Mark(
                number=number,
                name=trial.what,
                told=told,
                x=place[0],
                y=place[1],
                expected=None if expected is None else y.share(expected),
                side=side,
                best=trial is tuned.best,
            )
        )
    return marks


def _limit(tuned: Tuned, x: Axis, y: Axis, factor: int, largest: float) -> Limit | None:
    """None where the limit lies far beyond all files."""
    gate = _gate(tuned)
    if gate is not None:
        return Limit(along="y", at=y.share(gate), text=f"gate: {figures.number(gate)} nats")
    size = tuned.limit_bytes
    if size is None or size > largest:
        return None
    return Limit(along="x", at=x.share(size / factor), text=f"limit: {shown_size(size)}")


def _said(tuned: Tuned) -> str:
    files = "; ".join(
        f"{trial.what}: {shown_size(trial.size_bytes)}, {figures.number(trial.kld)} nats"
        for trial in tuned.trials
    )
    return f"Plot of file size against mean KL divergence. Files that were built: {files}."
