"""Which build to ship to which device, and why: pure decisions over a few figures of each build.

Per device, never across devices: the smallest file, the closest quantized one and the fastest one
of those that are fit to ship. Fit is a build that reads text and chats as the original does, and
whose mean KL divergence is at most ``report.KLD_FIT``, that of the coarsest 4-bit file in common
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from phipipe.package import figures
from phipipe.words import counted

Aim = Literal["size", "fidelity", "answer speed"]
Place = Literal["true", "emulated", "false"]
# a speed that was taken once stands for a tenth less to a tenth more, as repetitions differ
ONCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Answer tokens per second: the median, the ends of its spread, and what speeds must share to
    compare."""

    value: float
    low: float
    high: float
    conditions: tuple[str, int]

    @classmethod
    def of(cls, value: float, spread: Sequence[float], conditions: tuple[str, int]) -> Speed:
        """With the spread of its repetitions, or a wide one where it was taken once."""
        ends = [end for end in spread if end != value] or [(1 - ONCE) * value, (1 + ONCE) * value]
        return cls(
            value=value, low=min(*ends, value), high=max(*ends, value), conditions=conditions
        )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a decision needs of a build; a figure that nobody took is None. Names are distinct."""

    name: str
    device: str  # its title
    backend: str
    api: str = ""
    failed: bool = False
    size: float | None = None  # GiB
    kld: float | None = None
    bound: bool = False  # the divergence is a lower bound
    quantized: bool = False
    sound: bool = True  # reads text and chats as the original does
    place: Place = "false"  # where it was measured: on the device, emulated, or anywhere
    speed: Speed | None = None
    wider: str = ""  # the change of its recipe that spends more bits on all weights
    finer: str = ""  # the change that comes closer at the same precision

    @property
    def known(self) -> bool:
        """Whether it can be compared with others."""
        return not self.failed and self.size is not None and self.kld is not None

    @property
    def fit(self) -> bool:
        """Whether it may be shipped at all."""
        return self.sound and self.known and (self.kld or 0.0) <= figures.KLD_FIT[1]

    @property
    def closeness(self) -> tuple[float, float, str]:
        """The closest first, of equals the smallest; total, so that the order of builds changes
        nothing."""
        return self.kld or 0.0, self.size or 0.0, self.name

    @property
    def smallness(self) -> tuple[float, float, str]:
        """The smallest first, of equals the closest."""
        return self.size or 0.0, self.kld or 0.0, self.name


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The build to ship if ``aim`` matters most, the figure that says so, and the builds that are
    as fast."""

    aim: Aim
    build: str
    words: str
    unit: str = ""  # which of the device's units it runs on, where there are builds for several
    equals: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to ship to one device."""

    device: str
    where: str  # the device in words
    verdict: Literal["ship", "none fit", "nothing built"]
    picks: tuple[Pick, ...] = ()
    undecided: Mapping[Aim, str] = field(default_factory=dict)  # aim → why there is no pick
    reason: str = ""  # why there is nothing to ship, or nothing to choose
    closer: tuple[str, ...] = ()  # then: what in the recipes would come closer
    cautions: tuple[str, ...] = ()  # sentences
    front: tuple[str, ...] = ()  # smallest first
    behind: Mapping[str, str] = field(
        default_factory=dict
    )  # build → the closest one on the front that is ahead of it
    line: str = ""  # the answer in one line


# --- order


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
        if not any(
            ahead(a, candidate, fast) for a in kept
        ):  # what is ahead of it is no larger, so came before
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
    found = {c.name: [b for b in best if ahead(b, c, fast)] for c in built}
    return {
        name: min(rivals, key=lambda c: c.closeness).name
        for name, rivals in found.items()
        if rivals
    }


# --- decisions


def answers(candidates: Iterable[Candidate]) -> tuple[Answer, ...]:
    """One answer for each device that somebody asked for; those whose own speeds are known come
    first."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: c.name):
        if (
            candidate.device or not candidate.failed
        ):  # an older board does not say for which device a build failed
            groups.setdefault(candidate.device, []).append(candidate)
    untimed = {device: not any(c.speed for c in members) for device, members in groups.items()}
    found = [
        replace(a, line=_line(a))
        for a in (_answer(device, members) for device, members in groups.items())
    ]
    return tuple(sorted(found, key=lambda a: (untimed[a.device], a.device.casefold(), a.device)))


def _answer(device: str, members: Sequence[Candidate]) -> Answer:
    built, where = [c for c in members if not c.failed], _where(device, members)
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
        cautions=_cautions(members, fit),
        front=tuple(c.name for c in best),
        behind=_behind(built, best, fast),
    )
    if not fit:
        return replace(known, reason=_unfit(built), closer=_closer(built))
    of_aim, undecided = _choose([c for c in best if c.fit], leaders)
    units = {c.name: c.api for c in built if len({c.api for c in built}) > 1}
    chosen = tuple(replace(pick, unit=units.get(pick.build, "")) for pick in of_aim)
    undecided |= {"answer speed": doubt} if doubt else {}
    reason = "" if len(fit) > 1 else _alone(members, built)
    return replace(known, picks=chosen, undecided=undecided, reason=reason)


def _choose(
    best: Sequence[Candidate], leaders: Sequence[Candidate]
) -> tuple[list[Pick], dict[Aim, str]]:
    """Picks among ``best``, the fit builds on the front, and what cannot be decided."""
    undecided: dict[Aim, str] = {}
    smallest = min(best, key=lambda c: c.smallness)
    words = (
        f"the smallest that is fit: {' '.join(figures.size(smallest.size or 0.0))}, "
        f"{_divergence(smallest)}"
    )
    chosen = [Pick(aim="size", build=smallest.name, words=words)]
    among = [c for c in best if c.quantized] or best
    closest = min(among, key=lambda c: (c.kld, c.bound, c.closeness))
    if closest.bound and not all(c.bound for c in among):
        undecided["fidelity"] = "a lower bound of a divergence does not compare with a whole one"
    else:
        words = (
            f"the closest{' quantized' if closest.quantized else ''} build: {_divergence(closest)}"
        )
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


# --- words


def _line(answer: Answer) -> str:
    if answer.verdict != "ship":
        return ". ".join([f"{answer.where}: {answer.reason}", *answer.closer[:1]]) + "."
    if answer.reason:
        return f"{answer.where}: ship {answer.picks[0].build}, {answer.reason}."
    merged: dict[str, list[Pick]] = {}
    for pick in answer.picks:
        merged.setdefault(pick.build, []).append(pick)
    clauses = [_clause(found, alone=len(merged) == 1) for found in merged.values()]
    clauses += [f"no pick by {aim}, since {why}" for aim, why in answer.undecided.items()]
    return f"{answer.where}: ship {'; '.join(clauses)}."


def _clause(found: Sequence[Pick], *, alone: bool) -> str:
    equals = [name for pick in found for name in pick.equals]
    like = counted(len(equals), "other") if len(equals) > 2 else " and ".join(equals)
    name = f"{found[0].build} (on {found[0].unit})" if found[0].unit else found[0].build
    aims = [pick.aim for pick in found]
    words = (
        f"{name}, the best by {_listed(aims, 'and')}"
        if alone
        else f"{name} if {_listed(aims, 'or')} matters most"
    )
    return f"{words} (equally fast as {like})" if equals else words


def _listed(words: Sequence[str], last: str) -> str:
    return f" {last} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _alone(members: Sequence[Candidate], built: Sequence[Candidate]) -> str:
    """Why there is nothing to choose."""
    return (
        "the only build"
        if len(members) == 1
        else f"the only one that {'is fit' if len(built) > 1 else 'succeeded'}"
    )


def _divergence(candidate: Candidate) -> str:
    return f"mean KLD of {'at least ' if candidate.bound else ''}{figures.number(candidate.kld or 0.0)}"


def _where(device: str, members: Sequence[Candidate]) -> str:
    """The device, and its unit if all builds are for one that the title does not name."""
    if not device:
        return "a device without a name"
    units = {c.api for c in members}
    unit = next(iter(units)) if len(units) == 1 else ""
    return f"{device}, {unit}" if unit and unit not in device.casefold() else device


def _unfit(built: Sequence[Candidate]) -> str:
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
    return f"{what}: {subject} has a {_divergence(closest)}, {beyond}"


def _closer(built: Sequence[Candidate]) -> tuple[str, ...]:
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
    said = (
        f"Fit as a rule: {wider}" if wider else "",
        f"Closer at the same precision: {finer}" if finer else "",
    )
    return tuple(part for part in said if part)


def _cautions(members: Sequence[Candidate], fit: Sequence[Candidate]) -> tuple[str, ...]:
    """What the figures are not, and which builds were left out."""
    built = [c for c in members if not c.failed]
    places, some = {c.place for c in built}, "" if len({c.place for c in built}) == 1 else "Some: "
    odd, failed = [c.name for c in built if not c.sound], [c.name for c in members if c.failed]
    far = [c.name for c in built if c.sound and not c.fit]
    said = []
    if "emulated" in places:
        said.append(f"{some}The device was emulated, so its speed and memory are unknown.")
    if "false" in places:
        said.append(f"{some}Not measured on the device, so its speed and memory are unknown.")
    if fit and far:
        said.append(
            f"Not fit, since their mean KLD is beyond {figures.KLD_FIT[1]:g} or unknown: "
            f"{', '.join(far)}."
        )
    if odd:
        said.append(
            f"Not considered, since they read text or chats unlike the original: {', '.join(odd)}."
        )
    if failed:
        said.append(f"Not built: {', '.join(failed)}.")
    return tuple(said)
