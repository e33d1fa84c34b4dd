"""Decisions in words: what to ship to a device and why, what the figures are not, what would come
closer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from phipipe.board.candidates import Answer, Candidate, Pick
from phipipe.package import figures
from phipipe.words import counted


def line(answer: Answer) -> str:
    if answer.verdict != "ship":
        return ". ".join([f"{answer.where}: {answer.reason}", *answer.closer[:1]]) + "."
    if answer.reason:
        return f"{answer.where}: ship {answer.picks[0].build}, {answer.reason}."
    merged: dict[str, list[Pick]] = {}
    for pick in answer.picks:
        merged.setdefault(pick.build, []).append(pick)
    clauses = [_clause(picks, alone=len(merged) == 1) for picks in merged.values()]
    clauses += [f"no pick by {aim}, since {why}" for aim, why in answer.undecided.items()]
    return f"{answer.where}: ship {'; '.join(clauses)}."


def _clause(picks: Sequence[Pick], *, alone: bool) -> str:
    equals = [name for pick in picks for name in pick.equals]
    like = counted(len(equals), "other") if len(equals) > 2 else " and ".join(equals)
    name = f"{picks[0].build} (on {picks[0].unit})" if picks[0].unit else picks[0].build
    aims = [pick.aim for pick in picks]
    sentence = (
        f"{name}, the best by {_listed(aims, 'and')}"
        if alone
        else f"{name} if {_listed(aims, 'or')} matters most"
    )
    return f"{sentence} (equally fast as {like})" if equals else sentence


def _listed(words: Sequence[str], last: str) -> str:
    return f" {last} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def alone(members: Sequence[Candidate], built: Sequence[Candidate]) -> str:
    """Why there is nothing to choose."""
    return (
        "the only build"
        if len(members) == 1
        else f"the only one that {'is fit' if len(built) > 1 else 'succeeded'}"
    )


def divergence(candidate: Candidate) -> str:
    bound = "at least " if candidate.bound else ""
    return f"mean KLD of {bound}{figures.number(candidate.kld or 0.0)}"


def where(device: str, members: Sequence[Candidate]) -> str:
    """The device, and its unit if all builds are for one that the title does not name."""
    if not device:
        return "a device without a name"
    units = {c.api for c in members}
    unit = next(iter(units)) if len(units) == 1 else ""
    return f"{device}, {unit}" if unit and unit not in device.casefold() else device


def unfit(built: Sequence[Candidate]) -> str:
    """Why nothing of what was built is fit."""
    sound, alone = [c for c in built if c.sound], len(built) == 1
    what = (
        f"{built[0].name} is not fit to ship"
        if alone
        else f"none of these {len(built)} builds is fit to ship"
    )
    if not sound:
        return f"{what}: {'it reads' if alone else 'they read'} text or chats unlike the original"
    known = [c for c in sound if c.known]
    if not known:
        return f"{what}: {'its' if alone else 'their'} fidelity or size is not known"
    closest, (name, limit) = min(known, key=lambda c: c.closeness), figures.KLD_FIT
    subject = "it" if alone else f"the closest, {closest.name},"
    beyond = f"beyond the limit of {limit:g} ({name}, the coarsest usual 4-bit file)"
    return f"{what}: {subject} has a {divergence(closest)}, {beyond}"


def closer(built: Sequence[Candidate]) -> tuple[str, ...]:
    """What in the recipes would come closer: by backend, the closest build's first."""
    ordered = sorted((c for c in built if c.sound), key=lambda c: (not c.known, c.closeness))
    there = len({c.backend for c in ordered})

    def told(changes: Iterable[tuple[str, str]]) -> str:
        by: dict[str, list[str]] = {}
        for change, backend in dict.fromkeys(changes):
            by.setdefault(change, []).append(backend)
        return "; ".join(
            f"{c} ({', '.join(names)})" if len(names) < there else c for c, names in by.items()
        )

    wider, finer = (
        told((getattr(c, kind), c.backend) for c in ordered if getattr(c, kind))
        for kind in ("wider", "finer")
    )
    sentences = (
        f"Fit as a rule: {wider}" if wider else "",
        f"Closer at the same precision: {finer}" if finer else "",
    )
    return tuple(part for part in sentences if part)


def cautions(members: Sequence[Candidate], fit: Sequence[Candidate]) -> tuple[str, ...]:
    """What the figures are not, and which builds were left out."""
    built = [c for c in members if not c.failed]
    places = {c.place for c in built}
    odd, failed = [c.name for c in built if not c.sound], [c.name for c in members if c.failed]
    far = [c.name for c in built if c.sound and not c.fit]
    sentences = []
    if "emulated" in places:
        subject = "The device was" if len(places) == 1 else "For some builds the device was"
        sentences.append(f"{subject} emulated: speed and memory there are unknown.")
    if "false" in places:
        subject = "Not" if len(places) == 1 else "Some builds were not"
        sentences.append(f"{subject} measured on the device: speed and memory there are unknown.")
    if fit and far:
        sentences.append(
            f"Not fit, since their mean KLD is beyond {figures.KLD_FIT[1]:g} or unknown: "
            f"{', '.join(far)}."
        )
    if odd:
        sentences.append(
            f"Not considered, since they read text or chats unlike the original: {', '.join(odd)}."
        )
    if accepted := [c.name for c in built if c.accepted]:
        sentences.append(
            f"Some text is read unlike the original, as accepted: {', '.join(accepted)}."
        )
    if failed:
        sentences.append(f"Not built: {', '.join(failed)}.")
    return tuple(sentences)
