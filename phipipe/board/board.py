"""The fidelity board: several builds of one model side by side, and which of them to ship.

Pure functions over what finished packages' manifests hold; a build that failed has an entry too.
Builds are ordered by size, the smallest first: who reads down a board pays more and comes closer to
the original. What to ship to which device, and what is behind what there, ``picks`` decides.

Fidelity compares across machines, speed does not: entries measured on another machine, or with a
prompt of another length, than most are marked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import count

from phipipe.board import picks, remedies
from phipipe.board.candidates import Answer, Candidate, Speed
from phipipe.board.entry import Entry, one_line
from phipipe.errors import SourceError
from phipipe.evaluate import sampling


def done(entries: Iterable[Entry]) -> list[Entry]:
    """Those that came to something."""
    return [entry for entry in entries if entry.error is None]


def ranked(entries: Iterable[Entry]) -> list[Entry]:
    """The smallest first, of equals the closest; failed ones last. Names are made distinct."""
    ordered = sorted(
        entries,
        key=lambda e: (*_weight(e), e.name, e.device, e.api, e.backend, e.precision, _whole(e)),
    )
    taken: set[str] = set()
    distinct = []
    for entry in ordered:
        plain = one_line(entry.name)
        name = next(
            n for i in count(1) if (n := plain if i == 1 else f"{plain} ({i})") not in taken
        )
        taken.add(name)
        distinct.append(replace(entry, name=name))
    return distinct


def _weight(entry: Entry) -> tuple[int, float, float]:
    return (1, 0.0, 0.0) if entry.error is not None else (0, entry.size, entry.kld)


def _whole(entry: Entry) -> tuple[str, str]:
    """Its scheme, then all that it says: builds that differ in anything have one order."""
    return entry.scheme, json.dumps(asdict(entry), sort_keys=True, default=list)


def answers(entries: Iterable[Entry]) -> tuple[Answer, ...]:
    """What to ship to each device that was asked for; where builds share a name, by the names of
    ``ranked``."""
    return picks.answers(candidates(ranked(entries)))


def candidates(entries: Sequence[Entry]) -> list[Candidate]:
    """``entries``, whose names are distinct, as decisions see them."""
    there = {(e.device, e.backend, e.precision) for e in done(entries)}
    over = paired(entries)
    return [
        replace(
            _candidate(e, {p for d, b, p in there if (d, b) == (e.device, e.backend)}),
            paired=over.get(e.name),
        )
        for e in entries
    ]


def common(entries: Iterable[Entry]) -> tuple[int, ...]:
    """The windows that all builds scored, by their places in the text, where not all scored the
    same; else none."""
    return sampling.shared(e.sampling for e in done(entries)) or ()


def paired(entries: Sequence[Entry]) -> dict[str, float]:
    """Name → mean KL divergence over the windows of ``common``, in nats; empty where builds compare
    as they are."""
    windows = common(entries)
    told = {e.name: e.sampling for e in done(entries) if windows}
    return {name: sampling.over(one, windows)[0]["kld_mean"] for name, one in told.items() if one}


def _candidate(entry: Entry, taken: Collection[str]) -> Candidate:
    """What decisions need of ``entry``, whose device has builds of its backend in the precisions
    ``taken``."""
    value = entry.metrics.get("decode_tokens_per_s", 0.0)
    spread = entry.spread.get("decode_tokens_per_s", ())
    return Candidate(
        name=entry.name,
        device=one_line(entry.device),
        backend=one_line(entry.backend),
        api=one_line(entry.api),
        failed=entry.error is not None,
        size=entry.metrics.get("size_gib"),
        kld=entry.metrics.get("kld_mean"),
        bound=entry.reference,
        quantized=entry.precision.startswith("int"),
        sound=entry.sound,
        accepted=entry.accepted,
        place=entry.on_target,
        speed=Speed.of(value, spread, entry.conditions)
        if value > 0 and entry.on_target == "true"
        else None,
        wider=remedies.wider(entry.backend, entry.api, entry.precision, taken),
        finer=remedies.finer(entry.backend, entry.api, entry.precision, entry.scheme),
    )


def lines(decisions: Sequence[Answer]) -> list[str]:
    """The board in a sentence for each device."""
    return [answer.line for answer in decisions] or ["Nothing to ship: no build succeeded."]


def standing(decisions: Iterable[Answer]) -> tuple[frozenset[str], dict[str, str]]:
    """Names of those on their device's Pareto front; of others, who is ahead of them."""
    every = list(decisions)
    rivals = {name: rival for answer in every for name, rival in answer.behind.items()}
    return frozenset(name for answer in every for name in answer.front), rivals


def check_comparable(entries: Iterable[Entry]) -> None:
    """Fidelity compares only between builds of one model, scored on one text in one way.

    Raises:
        SourceError: names what differs, and between which two builds.
    """
    aspects: dict[str, Callable[[Entry], str]] = {
        "source model": lambda e: f"{e.source} {e.source_digest[:12]}",
        "evaluation text": lambda e: f"{e.text} {e.text_digest[:12]}",
        # of the build: on a device its first ones are scored
        "number of tokens": _amount,
        "window": lambda e: str(e.window),
        "skip": lambda e: str(e.skip),
    }
    every = done(entries)
    for what, of in aspects.items():
        other = next((e for e in every if of(e) != of(every[0])), None)
        if other is None:
            continue
        a, b = (f"`{one_line(e.name)}` has {one_line(of(e))}" for e in (every[0], other))
        advice = "give both recipes the same `evaluate` section and build again"
        if what == "source model":
            advice = "compare only builds of the same checkpoint"
        raise SourceError(
            f"these builds do not compare: their {what} differs: {a}, {b}", hint=advice
        )
    if sampling.shared(e.sampling for e in every) == ():
        raise SourceError(
            "these builds do not compare: no part of the text was scored by all of them",
            hint="give the recipes the same `evaluate` section and build again",
        )


def _amount(entry: Entry) -> str:
    """How much was scored, as far as it has to be the same: of builds that tell of their windows,
    those that they share are compared."""
    return "any number, window by window" if entry.windows else str(entry.tokens)


def elsewhere(entries: Iterable[Entry]) -> frozenset[str]:
    """Names of those whose speed was not taken as most were: another machine, or another prompt."""
    every = done(entries)
    counted = Counter(e.conditions for e in every)
    usual = max(counted, key=counted.__getitem__, default=None)  # of equals, the first
    return frozenset(e.name for e in every if e.conditions != usual)
