"""The fidelity board as a page: one file that opens without a network, with its plots and their
library in it.

Everything that a user, a model or a tool wrote is text: the template escapes it, labels escape what
plotly would read as markup, and JSON within the page cannot end its script. The page's own security
policy forbids it to load anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from phipipe.board import board, colours
from phipipe.board import plots as shown
from phipipe.board.candidates import Answer
from phipipe.board.columns import COLUMNS, FRONT, build_words, cell, notes
from phipipe.board.entry import Entry, one_line
from phipipe.evaluate.reports import Sanity
from phipipe.files import pages
from phipipe.package import figures
from phipipe.visible import in_template


def render(entries: Sequence[Entry], title: str = "Fidelity board") -> str:
    """The page's text. Entries may be in any order."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    every = board.ranked(entries)
    done, decisions = board.done(every), board.answers(every)
    environment = pages.environment(in_template, is_html=True)
    return environment.get_template("board/board.html.j2").render(
        title=title,
        answers=board.lines(decisions),
        facts=_facts(done),
        columns=COLUMNS,
        rows=_rows(every, decisions),
        front=FRONT,
        notes=notes(every),
        picks=decisions,
        plots=shown.plots(done, decisions),
        checks=[_checks(entry) for entry in done],
        provenance=[_provenance(entry) for entry in done],
        colours=shown.embedded(colours.DARK),
        plotly=Markup(get_plotlyjs()) if done else "",  # its own text, unescaped
    )


def _facts(done: Sequence[Entry]) -> list[str]:
    if not done:
        return []
    first, hosts = done[0], {figures.host_words(e.host) for e in done}
    where = next(iter(hosts)) if len(hosts) == 1 else f"{len(hosts)} machines"
    return [
        f"{first.source}, {figures.number(first.parameters / 1e6)} million parameters",
        f"{first.tokens:,} tokens of “{first.text}” in windows of {first.window:,}",
        f"the original’s perplexity is {figures.number(first.baseline_ppl)}",
        f"speed measured on {where}",
    ]


def _rows(every: Sequence[Entry], decisions: Sequence[Answer]) -> list[dict[str, object]]:
    away, (best, rivals) = board.elsewhere(every), board.standing(decisions)
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
            "score": figures.number(entry.score) if entry.error is None else "",
            "colour": colours.of_entry(entry),
        }
        for entry in every
    ]


def _checks(entry: Entry) -> dict[str, object]:
    sanity = Sanity.model_validate(entry.sanity)
    ended, greedy, repetition = sanity.answers_ended, sanity.greedy_agreement, sanity.repetition
    return {
        "name": entry.name,
        "flags": [sanity.tokenizer_equal, sanity.chat_template_equal],
        "greedy": "–" if greedy is None else f"{figures.number(100 * greedy)} %",
        "ended": f"{sum(ended)} of {len(ended)}" if ended else "–",
        "repetition": "–" if repetition is None else f"{figures.number(100 * repetition)} %",
    }


def _provenance(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "facts": {
            "Runtime": entry.backend_title or entry.backend,
            "Scheme": entry.scheme or entry.precision,
            "Device": f"{entry.device} ({entry.api}); measured on target: {entry.on_target}",
            "Host of the speeds": figures.host_words(entry.host),
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
