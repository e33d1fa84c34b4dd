"""The fidelity board as text: for a terminal, and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable

from phipipe.board.board import answers, done, elsewhere, lines, ranked, standing
from phipipe.board.columns import COLUMNS, FRONT, build_words, cell, notes
from phipipe.board.entry import Entry, one_line
from phipipe.board.picks import Answer
from phipipe.package.markdown import code, inline


def table(entries: Iterable[Entry], width: int = 100) -> str:
    """The board for a terminal, no line longer than ``width``: the last columns go first where it
    is narrow."""
    every = ranked(entries)
    away, (best, rivals) = elsewhere(every), standing(answers(every))
    heads = ["build", "backend, scheme", *(c.short for c in COLUMNS), "behind"]

    def measured(build: Callable[[Entry], str], longest: int) -> tuple[list[list[str]], list[int]]:
        cells = [
            [_middle(e.name, longest), build(e), *(cell(c, e, away) for c in COLUMNS)]
            for e in done(every)
        ]
        rows = [
            heads,
            *([*row, rivals.get(e.name, "")] for e, row in zip(done(every), cells, strict=True)),
        ]
        return rows, [max(map(len, column)) for column in zip(*rows, strict=True)]

    rows, wide = measured(build_words, width)
    if 2 * len(wide) + sum(wide) > width:
        rows, wide = measured(lambda e: f"{e.backend} {e.precision}", width)
        room = (
            width - 10 - sum(wide[1:5])
        )  # the divergence is what the board is about: names give way to it
        rows, wide = measured(lambda e: f"{e.backend} {e.precision}", max(room, 16))
    while len(wide) > 2 and 2 * len(wide) + sum(wide) > width:
        wide.pop()
    lines = []
    for sign, row in zip(
        [" ", *("*" if e.name in best else " " for e in done(every))], rows, strict=True
    ):
        ways = ["<", "<", *(">" for _ in COLUMNS), "<"]
        cells = [f"{text:{way}{n}}" for text, way, n in zip(row, ways, wide, strict=False)]
        lines.append(f"{sign} {'  '.join(cells)}"[:width].rstrip())
    said = [
        f"! {e.name}: {build_words(e)}, failed: {one_line(e.error or '')}"
        for e in every
        if e.error is not None
    ]
    said += [f"* {FRONT}", *notes(every)]
    return "\n".join(
        [
            *lines,
            *(part for note in said for part in textwrap.wrap(note, width, subsequent_indent="  ")),
        ]
    )


def advice(entries: Iterable[Entry]) -> list[str]:
    """What to ship, for a terminal: a line for each device, and below it what else would come
    closer."""
    found = answers(entries)
    told = [[answer.line, *(f"  {change}." for change in answer.closer[1:])] for answer in found]
    return [line for one in told for line in one] or lines(found)


def _middle(text: str, width: int) -> str:
    """Names of builds differ at their ends."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - half]}…{text[-half:]}"


def markdown(entries: Iterable[Entry], title: str = "Fidelity board") -> str:
    """The text of ``board.md``."""
    every, say = ranked(entries), inline
    found = answers(every)
    away, (best, rivals) = elsewhere(every), standing(found)
    told = [f"# {say(title)}", "", *(f"{say(line)}  " for line in lines(found)), ""]
    told += [
        "| build | "
        + " | ".join(["backend, scheme", *(c.title for c in COLUMNS), "Pareto front"])
        + " |"
    ]
    told += ["|---|---|" + "---:|" * len(COLUMNS) + "---|"]
    for e in every:
        cells = [cell(c, e, away) if e.error is None else "" for c in COLUMNS]
        last = "★" if e.name in best else f"behind {rivals[e.name]}" if e.name in rivals else ""
        cells.append(last if e.error is None else f"failed: {e.error}")
        told.append(
            "| "
            + " | ".join(say(one_line(text)) for text in (e.name, build_words(e), *cells))
            + " |"
        )
    told += [
        "",
        "Most fidelity per size first: −log10(mean KLD) / bits per weight.  ",
        f"★ {FRONT}.",
        "",
    ]
    told += ["## Which to ship", "", *(_advice(answer) for answer in found)] if found else []
    return "\n".join([*told, "", *(f"{say(note)}  " for note in notes(every))]).rstrip() + "\n"


def _advice(answer: Answer) -> str:
    """One device's item in the list of what to ship."""
    say = inline
    said = [f"{pick.aim}: {code(pick.build)} ({say(pick.words)})" for pick in answer.picks]
    said += [f"{aim}: no pick, since {say(why)}" for aim, why in answer.undecided.items()]
    if not answer.picks:
        said = [". ".join(say(part) for part in (answer.reason, *answer.closer))]
    return (
        f"- **{say(answer.where)}** – "
        f"{' '.join(['; '.join(said) + '.', *map(say, answer.cautions)])}"
    )
