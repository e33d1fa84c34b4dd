"""The fidelity board as text: for a terminal, and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence

from phipipe.board.board import answers, done, elsewhere, lines, ranked, standing
from phipipe.board.candidates import Answer
from phipipe.board.columns import FRONT, build_words, cell, columns, notes, remarks
from phipipe.board.entry import Entry, one_line
from phipipe.package.markdown import code, inline
from phipipe.words import shortened

ORDER = "Smallest first."


def table(entries: Iterable[Entry], width: int = 100) -> str:
    """The board for a terminal, no line longer than ``width``: the last columns go first where it
    is narrow."""
    every = ranked(entries)
    rows, widths = _fitting(every, width)
    best, _ = standing(answers(every))
    ways = ["<", "<", *(">" for _ in rows[0][3:]), "<"]
    lines = []
    for sign, row in zip(
        [" ", *("*" if e.name in best else " " for e in done(every))], rows, strict=True
    ):
        cells = [f"{text:{way}{n}}" for text, way, n in zip(row, ways, widths, strict=False)]
        lines.append(f"{sign} {'  '.join(cells)}"[:width].rstrip())
    failures = [
        f"! {e.name}: {build_words(e)}, failed: {one_line(e.error or '')}"
        for e in every
        if e.error is not None
    ]
    for note in [*failures, ORDER, f"* {FRONT}", *notes(every), *remarks(every)]:
        lines += textwrap.wrap(note, width, subsequent_indent="  ")
    return "\n".join(lines)


def _fitting(every: Sequence[Entry], width: int) -> tuple[list[list[str]], list[int]]:
    """The rows, heads first, and the widths of those columns that ``width`` has room for."""
    rows, widths = _rows(every, build_words, width)
    if 2 * len(widths) + sum(widths) > width:
        rows, widths = _rows(every, _brief, width)
        # the divergence is what the board is about: names give way to it
        room = width - 10 - sum(widths[1:5])
        rows, widths = _rows(every, _brief, max(room, 16))
    while len(widths) > 2 and 2 * len(widths) + sum(widths) > width:
        widths.pop()
    return rows, widths


def _brief(entry: Entry) -> str:
    return f"{entry.backend} {entry.precision}"


def _rows(
    every: Sequence[Entry], build: Callable[[Entry], str], longest: int
) -> tuple[list[list[str]], list[int]]:
    """Rows whose names have at most ``longest`` characters, and how wide their columns are. A
    figure that no build has gets none."""
    away, (_, rivals) = elsewhere(every), standing(answers(every))
    known = [c for c in columns(every) if any(c.value(e) is not None for e in done(every))]
    rows = [["build", "backend, scheme", *(c.short for c in known), "behind"]]
    for entry in done(every):
        cells = (cell(column, entry, away) for column in known)
        name = shortened(entry.name, longest)
        rows.append([name, build(entry), *cells, rivals.get(entry.name, "")])
    return rows, [max(map(len, column)) for column in zip(*rows, strict=True)]


def advice(entries: Iterable[Entry]) -> list[str]:
    """What to ship, for a terminal: a line for each device, and below it what else would come
    closer."""
    decisions = answers(entries)
    groups = [
        [answer.line, *(f"  {change}." for change in answer.closer[1:])] for answer in decisions
    ]
    return [line for one in groups for line in one] or lines(decisions)


def markdown(entries: Iterable[Entry], title: str = "Fidelity board") -> str:
    """The text of ``board.md``."""
    every, say = ranked(entries), inline
    decisions = answers(every)
    away, (best, rivals) = elsewhere(every), standing(decisions)
    shown = columns(every)
    rows = [f"# {say(title)}", "", *(f"{say(line)}  " for line in lines(decisions)), ""]
    rows += [
        "| build | "
        + " | ".join(["backend, scheme", *(c.title for c in shown), "Pareto front"])
        + " |"
    ]
    rows += ["|---|---|" + "---:|" * len(shown) + "---|"]
    for e in every:
        cells = [cell(c, e, away) if e.error is None else "" for c in shown]
        last = "★" if e.name in best else f"behind {rivals[e.name]}" if e.name in rivals else ""
        cells.append(last if e.error is None else f"failed: {e.error}")
        rows.append(
            "| "
            + " | ".join(say(one_line(text)) for text in (e.name, build_words(e), *cells))
            + " |"
        )
    rows += [
        "",
        f"{ORDER}  ",
        f"★ {FRONT}.",
        "",
    ]
    rows += (
        ["## Which to ship", "", *(_advice(answer) for answer in decisions)] if decisions else []
    )
    said = (f"{say(note)}  " for note in (*notes(every), *remarks(every)))
    return "\n".join([*rows, "", *said]).rstrip() + "\n"


def _advice(answer: Answer) -> str:
    """One device's item in the list of what to ship."""
    say = inline
    items = [f"{pick.aim}: {code(pick.build)} ({say(pick.words)})" for pick in answer.picks]
    items += [f"{aim}: no pick, since {say(why)}" for aim, why in answer.undecided.items()]
    if not answer.picks:
        items = [". ".join(say(part) for part in (answer.reason, *answer.closer))]
    return (
        f"- **{say(answer.where)}** – "
        f"{' '.join(['; '.join(items) + '.', *map(say, answer.cautions)])}"
    )
