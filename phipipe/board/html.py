"""The fidelity board as a page: one file that opens without a network and works without scripts.

Everything that a user, a model or a tool wrote is text, which the template escapes. The page's own
security policy forbids it to load anything. Scripts sort, filter and switch the theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from phipipe.board import board, charts, colours, origin, plots
from phipipe.board.candidates import Answer
from phipipe.board.columns import (
    COLUMNS,
    FRONT,
    Column,
    build_words,
    cell,
    columns,
    marks,
    notes,
    remarks,
)
from phipipe.board.entry import Entry, one_line
from phipipe.evaluate import sampling
from phipipe.evaluate.reports import Sanity
from phipipe.files import pages
from phipipe.metrics import METRICS
from phipipe.package import figures
from phipipe.visible import in_template
from phipipe.words import counted, shortened

KEY_FIGURES = COLUMNS[:3]


def render(entries: Sequence[Entry], title: str = "Fidelity board") -> str:
    """The page's text. Entries may be in any order."""
    every = board.ranked(entries)
    done, decisions = board.done(every), board.answers(every)
    places = colours.families(every)
    page = charts.Page(done, decisions, places)
    environment, made = pages.environment(in_template, is_html=True), origin.words()
    return environment.get_template("board/board.html.j2").render(
        frame(every),
        title=title,
        subtitle=f"{done[0].source} · {made}" if done else made,
        facts=_facts(done),
        **shown(every, decisions, places),
        devices=sorted({one_line(e.device) for e in every if e.device}),
        legend=colours.legend(places),
        scatter=plots.scatter(page) if len(done) > 1 else None,
        charts=list(charts.charts(page)) if done else [],
        panels=plots.panels(page) if done else None,
        checks=[_checks(entry) for entry in done],
        unsound=[entry.name for entry in done if not entry.sound],
        accepted=[entry.name for entry in done if entry.accepted],
        provenance=[_provenance(entry) for entry in done],
    )


def frame(every: Sequence[Entry]) -> dict[str, object]:
    """Names that a page of boards with ``every`` entry has: its colours, columns and words."""
    shown = columns(every)
    return {
        "series": list(colours.SERIES.items()),
        "columns": shown,
        "short": shortened,
        "terms": {c.name: (c.title, c.meaning) for c in shown} | _TERMS,
    }


_TERMS = {
    "front": (
        "★ Pareto front",
        f"A build with ★ is {FRONT}. A build without it is behind another build of its device, "
        f"which the last column names.",
    ),
    "fit": (
        "fit to ship",
        f"A build is fit if it reads text and chats as the original does, and its mean KL "
        f"divergence is at most {figures.KLD_FIT[1]:g}: that of {figures.KLD_FIT[0]}, the coarsest "
        f"usual 4-bit file of another model. It is an orientation; try the build on your own "
        f"tasks.",
    ),
}


def shown(
    every: Sequence[Entry], decisions: Sequence[Answer], places: Mapping[str, int]
) -> dict[str, object]:
    """The table and the answers, as the template's parts take them."""
    return {
        "columns": columns(every),
        "answers": [_answer(answer, every, places) for answer in decisions],
        "rows": _rows(every, decisions, places, columns(every)),
        "notes": [*notes(every), *remarks(every)],
        "size": counted(len(every), "build"),
    }


def _facts(done: Sequence[Entry]) -> list[tuple[str, str]]:
    if not done:
        return []
    most = "up to " if any(e.windows for e in done) else ""
    first, hosts = done[0], {figures.host_words(e.host) for e in done}
    where = next(iter(hosts)) if len(hosts) == 1 else f"{len(hosts)} machines, see Provenance"
    return [
        ("Model", f"{first.source}, {figures.number(first.parameters / 1e6)} million parameters"),
        (
            "Text",
            f"{most}{first.tokens:,} tokens of “{first.text}” in windows of {first.window:,}; the "
            f"original’s perplexity is {figures.number(first.baseline_ppl)}",
        ),
        ("Speed measured on", where),
    ]


def _answer(answer: Answer, every: Sequence[Entry], places: Mapping[str, int]) -> dict[str, object]:
    """The one build to ship, the smallest that is fit, with its figures; and who is better in what
    else."""
    by_name, away = {e.name: e for e in every}, board.elsewhere(every)
    builds = [by_name[pick.build] for pick in answer.picks]
    first = builds[0] if builds else None
    return {
        "answer": answer,
        "first": first,
        "figures": [
            (c.name, c.short, cell(c, first, away))
            for c in KEY_FIGURES
            if first is not None and c.value(first) is not None
            # a speed that is not the device's own says nothing here
            if not (c.speed and marks(first, away))
        ],
        "yardstick": figures.yardstick(first.kld) if first is not None else "",
        "also": [p.aim for p in answer.picks[1:] if first is not None and p.build == first.name],
        "others": [p for p in answer.picks[1:] if first is not None and p.build != first.name],
        "colours": {e.name: places[e.backend] for e in builds},
    }


def _rows(
    every: Sequence[Entry],
    decisions: Sequence[Answer],
    places: Mapping[str, int],
    shown: Sequence[Column],
) -> list[dict[str, object]]:
    away, (best, rivals) = board.elsewhere(every), board.standing(decisions)
    chosen = {pick.build for answer in decisions for pick in answer.picks[:1]}
    return [
        {
            "entry": entry,
            "build": build_words(entry),
            "device": one_line(entry.device),
            "error": one_line(entry.error or ""),
            "cells": []
            if entry.error is not None
            else [
                {
                    "name": c.name,
                    "text": cell(c, entry, away).partition(" ± "),
                    "value": c.value(entry),
                }
                for c in shown
            ],
            "front": entry.name in best,
            "ship": entry.name in chosen,
            "behind": rivals.get(entry.name, ""),
            "colour": places[entry.backend],
        }
        for entry in every
    ]


def _checks(entry: Entry) -> dict[str, object]:
    sanity = Sanity.model_validate(entry.sanity)
    ended, greedy, repetition = sanity.answers_ended, sanity.greedy_agreement, sanity.repetition
    return {
        "name": entry.name,
        "device": one_line(entry.device),
        "flags": [sanity.tokenizer_equal, sanity.chat_template_equal],
        "accepted": entry.accepted,
        "greedy": "–" if greedy is None else f"{figures.number(100 * greedy)} %",
        "ended": f"{sum(ended)} of {len(ended)}" if ended else "–",
        "prompts": _prompts(entry),
        "repetition": "–" if repetition is None else f"{figures.number(100 * repetition)} %",
    }


def _prompts(entry: Entry) -> str:
    """How it answers prompts, in few words; a dash where none were asked."""
    words = {"ended": "end", "loops": "loop"}
    told = [
        f"{' '.join(figures.shown(METRICS[name], entry.metrics[name]))} {word}"
        for name, word in words.items()
        if name in entry.metrics
    ]
    return ", ".join(told) or "–"


def _scored(entry: Entry) -> str:
    return sampling.words(entry.sampling) if entry.sampling else f"{entry.tokens:,} tokens"


def _provenance(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "device": one_line(entry.device),
        "facts": {
            "Runtime": entry.backend_title or entry.backend,
            "Scheme": entry.scheme or entry.precision,
            "Device": f"{entry.device} ({entry.api}); measured on target: {entry.on_target}",
            "Host of the speeds": figures.host_words(entry.host),
            "Prompt": f"{entry.prompt_tokens} tokens",
            "Source": entry.source,
            "Source digest": entry.source_digest,
            **({"Learned weights": entry.weights} if entry.weights else {}),
            "Text": f"{entry.text}, {_scored(entry)}, window {entry.window:,}, first "
            f"{entry.skip} unscored",
            "Text digest": entry.text_digest,
            "phipipe": entry.phipipe,
        },
        "tools": entry.tools,
        "steps": entry.keys,
    }
