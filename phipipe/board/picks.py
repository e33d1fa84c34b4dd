"""Which build to ship to which device, and why: pure decisions over a few figures of each build.

Per device, never across devices: the smallest file, the closest quantized one and the fastest one
of those that are fit to ship. Fit is a build that reads text and chats as the original does, and
whose mean KL divergence is at most ``figures.KLD_FIT``, that of the coarsest 4-bit file in common
use. Where none is fit the answer says so, and what would come closer.

A speed counts only if it was taken on the device. Speeds whose spreads overlap are equal: then
fidelity decides, then size. A build is behind another of its device if that one is at most as large
and at most as far from the original, better in one of the two, and, where the build is among the
fastest, among them as well. That order is transitive, so what is behind something is behind
something on the front. A divergence that was scored against a package's reference data is a lower
bound: it never puts a build ahead of one whose divergence is known whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from phipipe.board import pick_words
from phipipe.board.candidates import Aim, Answer, Candidate, Pick
from phipipe.package import figures


def ahead(a: Candidate, b: Candidate, fast: frozenset[str] = frozenset()) -> bool:
    """Whether ``a`` makes ``b`` pointless on their device, ``fast`` being the names of its fastest
    builds."""
    if (
        not (a.sound and a.known and b.known)
        or (a.bound and not b.bound)
        or (b.name in fast and a.name not in fast)
    ):
        return False
    (size, kld, _), (other_size, other_kld, _) = a.smallness, b.smallness
    return size <= other_size and kld <= other_kld and (size, kld) != (other_size, other_kld)


def front(members: Iterable[Candidate], fast: frozenset[str] = frozenset()) -> list[Candidate]:
    """Of one device's builds those that nothing is ahead of, smallest first."""
    kept: list[Candidate] = []
    for candidate in sorted((c for c in members if c.sound and c.known), key=lambda c: c.smallness):
        # what is ahead of it is no larger, so came before
        if not any(ahead(a, candidate, fast) for a in kept):
            kept.append(candidate)
    return kept


def fastest(fit: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    """Of ``fit`` those that none is clearly faster than, the closest first; or none, and why they
    are not known."""
    timed = [(c, c.speed) for c in fit if c.speed]
    counted = Counter(speed.conditions for _, speed in timed).most_common()
    if not counted:
        return [], "none of them was timed on the device"
    if len(counted) > 1 and counted[0][1] == counted[1][1]:
        return [], "the speeds were taken on different machines or with different prompts"
    alike = [(c, speed) for c, speed in timed if speed.conditions == counted[0][0]]
    if len(alike) == 1 and len(fit) > 1:
        return [], f"only {alike[0][0].name} was timed on the device"
    floor = max(speed.low for _, speed in alike)
    equal = [c for c, speed in alike if speed.high >= floor]
    return sorted(
        equal, key=lambda c: (c.bound, c.closeness)
    ), ""  # a lower bound proves no closeness


def _behind(
    built: Iterable[Candidate], best: Sequence[Candidate], fast: frozenset[str]
) -> dict[str, str]:
    ahead_of = {c.name: [b for b in best if ahead(b, c, fast)] for c in built}
    return {
        name: min(rivals, key=lambda c: c.closeness).name
        for name, rivals in ahead_of.items()
        if rivals
    }


def answers(candidates: Iterable[Candidate]) -> tuple[Answer, ...]:
    """One answer for each device that somebody asked for; those whose own speeds are known come
    first."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: c.name):
        # an older board does not say for which device a build failed
        if candidate.device or not candidate.failed:
            groups.setdefault(candidate.device, []).append(candidate)
    untimed = {device: not any(c.speed for c in members) for device, members in groups.items()}
    every = [
        replace(a, line=pick_words.line(a))
        for a in (_answer(device, members) for device, members in groups.items())
    ]
    return tuple(sorted(every, key=lambda a: (untimed[a.device], a.device.casefold(), a.device)))


def _answer(device: str, members: Sequence[Candidate]) -> Answer:
    built, where = [c for c in members if not c.failed], pick_words.where(device, members)
    if not built:
        reason = "nothing to ship: no build succeeded"
        return Answer(device=device, where=where, verdict="nothing built", reason=reason)
    fit = [c for c in built if c.fit]
    leaders, doubt = fastest(fit)
    fast = frozenset(c.name for c in leaders)
    best = front(built, fast)
    known = Answer(
        device=device,
        where=where,
        verdict="ship" if fit else "none fit",
        cautions=pick_words.cautions(members, fit),
        front=tuple(c.name for c in best),
        behind=_behind(built, best, fast),
    )
    if not fit:
        return replace(known, reason=pick_words.unfit(built), closer=pick_words.closer(built))
    of_aim, undecided = _choose([c for c in best if c.fit], leaders)
    units = {c.name: c.api for c in built if len({c.api for c in built}) > 1}
    chosen = tuple(replace(pick, unit=units.get(pick.build, "")) for pick in of_aim)
    undecided |= {"answer speed": doubt} if doubt else {}
    reason = "" if len(fit) > 1 else pick_words.alone(members, built)
    return replace(known, picks=chosen, undecided=undecided, reason=reason)


def _choose(
    best: Sequence[Candidate], leaders: Sequence[Candidate]
) -> tuple[list[Pick], dict[Aim, str]]:
    """Picks among ``best``, the fit builds on the front, and what cannot be decided."""
    undecided: dict[Aim, str] = {}
    smallest = min(best, key=lambda c: c.smallness)
    words = (
        f"the smallest that is fit: {' '.join(figures.size(smallest.size or 0.0))}, "
        f"{pick_words.divergence(smallest)}"
    )
    chosen = [Pick(aim="size", build=smallest.name, words=words)]
    among = [c for c in best if c.quantized] or best
    closest = min(among, key=lambda c: (c.distance, c.bound, c.closeness))
    if closest.bound and not all(c.bound for c in among):
        undecided["fidelity"] = "a lower bound of a divergence does not compare with a whole one"
    else:
        kind = " quantized" if closest.quantized else ""
        words = f"the closest{kind} build: {pick_words.divergence(closest)}"
        chosen.append(Pick(aim="fidelity", build=closest.name, words=words))
    if leaders:
        chosen.append(_fast_pick(leaders))
    return chosen, undecided


def _fast_pick(leaders: Sequence[Candidate]) -> Pick:
    first, equals = leaders[0], tuple(c.name for c in leaders[1:])
    speed = first.speed
    assert speed is not None  # leaders were timed
    words = (
        f"{figures.number(speed.value)} tokens/s ({figures.number(speed.low)} to "
        f"{figures.number(speed.high)})"
    )
    if not equals:
        return Pick(
            aim="answer speed", build=first.name, words=f"the fastest on the device: {words}"
        )
    words = f"{words}; equally fast: {', '.join(equals)}, so fidelity decides, then size"
    return Pick(aim="answer speed", build=first.name, words=words, equals=equals)
