"""The board's columns: what a cell shows, and the signs that say how its figure is to be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phipipe.board.board import common, done, elsewhere
from phipipe.board.entry import Entry, one_line
from phipipe.evaluate.run_reports import SAME
from phipipe.metrics import METRICS
from phipipe.package import figures

DIVERGENCES = ("kld_mean", "kld_run")
ON_TARGET = ("false", "emulated", "true")
FRONT = (
    "on the Pareto front of its device: no smaller build is as close to the original, or only "
    "slower ones are"
)
MARKS = {
    "†": "measured on another machine or with another prompt than most: speeds do not compare",
    "~": "the device was emulated: how it runs the file was tried, the speed is not the device's",
    "°": "not measured on the device: what the file loses holds there, not KLD run, speed and "
    "memory",
    "≥": "measured on the device against the likeliest tokens of each position, which travel "
    "with the package: a lower "
    "bound",
}


def marks(entry: Entry, away: frozenset[str]) -> str:
    """What must be known of its speed, as signs that ``MARKS`` explains."""
    target = {"emulated": "~", "false": "°"}.get(entry.on_target, "")
    return target + ("†" if entry.name in away else "")


@dataclass(frozen=True)
class Column:
    """One column of the board: ``value`` is what it sorts by, ``text`` what it shows."""

    name: str
    title: str
    short: str  # its title where it is narrow
    meaning: str  # sentences that explain it
    value: Callable[[Entry], float | None]
    text: Callable[[Entry], str]
    speed: bool  # its cells carry marks


def _metric(name: str) -> Column:
    metric = METRICS[name]

    def value(entry: Entry) -> float | None:
        return entry.metrics[name] * metric.factor if name in entry.metrics else None

    def text(entry: Entry) -> str:
        amount = value(entry)
        if amount is None:
            return "–"
        if metric.is_size:
            return " ".join(figures.size(amount)) if amount > 0 else "0"
        if name == "kld_run" and entry.knob == SAME:
            return "same"
        if name in DIVERGENCES:
            told = figures.with_error(amount, entry.stderr.get(name))
            # of a run only the digits that its error leaves: there is room for one error
            told = told if name == "kld_mean" else told.partition(" ± ")[0]
            return ("≥ " if entry.reference else "") + told
        if metric.unit == "s":
            return (
                f"{figures.number(amount)} s"
                if amount >= 1
                else f"{figures.number(1000 * amount)} ms"
            )
        return figures.number(amount, metric.digits)

    is_speed = metric.kind == "speed"
    return Column(name, metric.column, metric.heading, metric.meaning, value, text, is_speed)


# A choice needs the first three: a phone and a narrow terminal show these.
COLUMNS = (
    *map(_metric, ("size_gib", "kld_mean", "decode_tokens_per_s")),
    *map(_metric, ("kld_run", "bits_per_weight", "top1", "ppl_ratio", "ttft_s", "peak_memory_gib")),
    Column(
        "on_target",
        "on target",
        "target",
        "Whether the figures were taken on the device itself (true), in an emulator of it "
        "(emulated), or on another machine (false).",
        lambda e: ON_TARGET.index(e.on_target),
        lambda e: e.on_target,
        speed=False,
    ),
)


SCORED = Column(
    "scored",
    "tokens scored",
    "scored",
    "On how many tokens of the text the figures of fidelity rest. Where builds differ in it, they "
    "are ranked by the divergence over those that all of them scored.",
    lambda e: float(e.scored or e.tokens),
    lambda e: f"{e.scored or e.tokens:,}",
    speed=False,
)


def columns(entries: Sequence[Entry]) -> tuple[Column, ...]:
    """The columns that a board of ``entries`` has: how much was scored only where it may differ."""
    sampled = any(e.scored for e in done(entries))
    return (*COLUMNS[:3], SCORED, *COLUMNS[3:]) if sampled else COLUMNS


def cell(column: Column, entry: Entry, away: frozenset[str]) -> str:
    """What ``column`` shows of ``entry``, with its marks."""
    shown = column.text(entry)
    signs = marks(entry, away) if column.speed and column.value(entry) is not None else ""
    return f"{shown} {signs}" if signs else shown


def build_words(entry: Entry) -> str:
    return one_line(f"{entry.backend} {entry.scheme or entry.precision}")


def notes(entries: Sequence[Entry]) -> list[str]:
    """The explanations of those marks that occur."""
    away = elsewhere(entries)
    used = "".join(marks(e, away) + ("≥" if e.reference else "") for e in done(entries))
    return [f"{sign} {meaning}" for sign, meaning in MARKS.items() if sign in used]


def remarks(entries: Sequence[Entry]) -> list[str]:
    """What adapters changed of their bases, a sentence for each original; what runtimes do by
    default; which builds hold the same learned weights, bit for bit."""
    told = {f"{one_line(e.source)}: {one_line(e.change)}." for e in done(entries) if e.change}
    return [*sorted(told), *_pairing(entries), *_knobs(entries), *_same_weights(entries)]


def _pairing(entries: Sequence[Entry]) -> list[str]:
    """By what builds are ranked that scored different windows."""
    if not (windows := common(entries)):
        return []
    tokens = len(windows) * done(entries)[0].window
    return [f"Ranked by the KL divergence over the {tokens:,} tokens that all builds scored."]


def _knobs(entries: Sequence[Entry]) -> list[str]:
    """What is in "KLD run" besides what the file loses, a sentence for each way to compute."""
    ways: dict[tuple[str, str], set[str]] = {}
    for entry in done(entries):
        if entry.knob:
            way = (one_line(entry.backend), one_line(entry.knob))
            ways.setdefault(way, set()).add(one_line(entry.precision))
    return [
        f"{METRICS['kld_run'].heading} of {backend} {', '.join(sorted(precisions))}: {how}."
        for (backend, how), precisions in sorted(ways.items())
    ]


def _same_weights(entries: Sequence[Entry]) -> list[str]:
    sharing: dict[str, list[str]] = {}
    for entry in done(entries):
        if entry.weights:
            sharing.setdefault(entry.weights, []).append(one_line(entry.name))
    return [
        f"The same weights, bit for bit ({digest[:12]}): {', '.join(sorted(names))}."
        for digest, names in sharing.items()
        if len(names) > 1
    ]
