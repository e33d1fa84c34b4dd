"""The fidelity board: several builds of one model side by side, and which of them to ship.

Pure functions over what finished packages' manifests hold; a build that failed has an entry too. Builds
are ordered by fidelity per size, ``-log10(mean KL divergence) / bits per weight``: decimal digits in which
the predictions agree with the original's, per bit spent on a weight. A build is on the Pareto front if no
other one is at most as large and at most as far from the original (and better in one of the two).

Fidelity compares across machines, speed does not: entries measured on another machine, or with a prompt of
another length, than most are marked.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any, ClassVar, Literal

from phipipe import __version__, card, report
from phipipe.errors import SourceError
from phipipe.metrics import METRICS, names

TYPE = "phipipe-board"
FORMAT = 1
ZERO = 1e-12  # what a divergence of 0 counts as wherever a logarithm is taken
SPEED = names("speed")
REQUIRED = ("kld_mean", "size_gib", "bits_per_weight")
ON_TARGET = ("false", "emulated", "true")
MARKS = {
    "†": "measured on another machine or with another prompt than most: speeds do not compare",
    "~": "the device was emulated: what it computes is the device's, the speed is not",
    "°": "not measured on the device: fidelity holds there, speed and memory do not",
    "≥": "measured on the device against the likeliest tokens of each position, which travel with the package: a lower "
    "bound",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One build: what it is, what was measured, and where the numbers come from."""

    # read by pydantic in ``load``: a board is data from outside
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    name: str
    backend: str
    precision: str
    error: str | None = None  # why there is no artifact; then nothing below is known
    backend_title: str = ""
    scheme: str = ""
    device: str = ""  # its title
    api: str = ""
    on_target: Literal["true", "emulated", "false"] = "false"
    source: str = ""
    source_digest: str = ""
    parameters: int = 0
    text: str = ""  # the evaluation text, in words
    text_digest: str = ""
    tokens: int = 0
    window: int = 0
    skip: int = 0
    baseline_ppl: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)  # by the names of ``metrics.METRICS``
    stderr: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, Sequence[float]] = field(default_factory=dict)
    profile: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sanity: Mapping[str, bool | float | Sequence[bool] | None] = field(default_factory=dict)
    host: Mapping[str, str | int | float | None] = field(default_factory=dict)
    prompt_tokens: int = 0
    phipipe: str = ""
    tools: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)  # step → key
    measured: bool = False  # on the device, by `phipipe measure`: takes the place of the build's own entry
    reference: bool = False  # scored by what the package carries: its divergence is a lower bound

    @property
    def kld(self) -> float:
        return self.metrics["kld_mean"]

    @property
    def size(self) -> float:
        return self.metrics["size_gib"]

    @property
    def score(self) -> float:
        """Digits of agreement per bit; see the module's text."""
        return -math.log10(max(self.kld, ZERO)) / self.metrics["bits_per_weight"]

    @property
    def conditions(self) -> tuple[str, int]:
        """What two speeds must share to compare."""
        return host_words(self.host), self.prompt_tokens

    @property
    def sound(self) -> bool:
        """Whether it reads text and chats as the original does; nothing else is worth shipping."""
        return all(self.sanity.get(name, True) for name in ("tokenizer_equal", "chat_template_equal"))


def from_manifest(manifest: Mapping[str, Any]) -> Entry:
    """The entry of a finished package, by its manifest."""
    fidelity, speed, source, steps = (manifest[name] for name in ("fidelity", "speed", "source", "steps"))
    tools = {n: v for step in steps.values() for n, v in step["tools"].items() if card.MAIN_TOOLS.fullmatch(n)}
    baseline = fidelity["baseline"]
    return Entry(
        **{name: manifest[name] for name in ("name", "backend", "precision", "backend_title", "scheme", "api")},
        device=manifest["device"]["title"],
        on_target=manifest["on_target"],
        source=source.get("name") or source["repo"],
        source_digest=source["digest"],
        parameters=source["parameters"],
        text=_text_words(manifest["recipe"]),
        text_digest=steps["text"]["digest"],
        **{name: baseline[name] for name in ("tokens", "window", "skip")},
        baseline_ppl=baseline["ppl"],
        metrics={**fidelity["metrics"], **speed["metrics"]},
        stderr=fidelity["stderr"],
        spread=speed.get("spread", {}),
        profile=fidelity["profile"],
        sanity=fidelity["sanity"],
        host=speed.get("host", {}),
        prompt_tokens=speed.get("prompt_tokens", 0),
        phipipe=manifest["phipipe"],
        tools=dict(sorted(tools.items())),
        keys={name: steps[name]["key"] for name in sorted(steps)},
    )


def measured(manifest: Mapping[str, Any], evaluation: Mapping[str, Any] | None, speed: Mapping[str, Any]) -> Entry:
    """The entry of a package that was measured on its device, by the reference data that it carries.

    Without an ``evaluation`` (a device that gives no logits) fidelity stays that of the build.
    """
    built = from_manifest(manifest)
    kept = {name: value for name, value in built.metrics.items() if name not in SPEED}
    entry = replace(
        built,
        on_target="true",
        measured=True,
        metrics={**kept, **speed["metrics"]},
        spread=speed["spread"],
        host=speed["host"],
        prompt_tokens=speed["prompt_tokens"],
    )
    if evaluation is None:
        return entry
    sizes = {name: built.metrics[name] for name in REQUIRED[1:]}  # of the artifact, without what lies beside it
    return replace(
        entry,
        reference=True,
        metrics={**entry.metrics, **evaluation["metrics"], **sizes},
        stderr=evaluation["stderr"],
        profile=evaluation["profile"],
        sanity=evaluation["sanity"],
    )


def failed(name: str, backend: str, precision: str, message: str) -> Entry:
    """The entry of a build that came to nothing."""
    return Entry(name=name, backend=backend, precision=precision, error=message or "failed")


def _text_words(recipe: Mapping[str, Any]) -> str:
    text = recipe.get("evaluate", {}).get("text", {})
    return str(text.get("builtin") or text.get("dataset", {}).get("repo") or text.get("file") or "unnamed")


def host_words(host: Mapping[str, Any]) -> str:
    """The machine in one line."""
    cores = f"{host['cores']} cores of {host['processor']}" if host.get("cores") and host.get("processor") else ""
    memory = f"{host['memory_gib']} GiB of memory" if host.get("memory_gib") else ""
    system = " ".join(str(host[name]) for name in ("system", "machine") if host.get(name))
    return ", ".join(part for part in (cores, memory, system) if part) or "an unrecorded machine"


def dump(entries: Iterable[Entry]) -> str:
    """The text of ``board.json``."""
    board = {"type": TYPE, "format": FORMAT, "phipipe": __version__, "entries": [asdict(e) for e in ranked(entries)]}
    return json.dumps(board, indent=2, sort_keys=True, allow_nan=False) + "\n"


def load(text: str) -> list[Entry]:
    """The entries of a ``board.json``.

    Raises:
        SourceError: it is something else, damaged, or a newer phipipe wrote it.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        board = json.loads(text)
    except (ValueError, RecursionError):
        raise SourceError("this board is damaged: it is not valid JSON", hint=_HINT) from None
    if not isinstance(board, dict) or board.get("type") != TYPE:
        raise SourceError(f"this is no board of phipipe: its `type` is not `{TYPE}`", hint=_HINT)
    version = board.get("format")
    if type(version) is int and version > FORMAT:
        raise SourceError(
            f"this board was made by a newer phipipe: its format is {version}, this phipipe reads up to {FORMAT}",
            hint="install the newest phipipe",
        )
    if type(version) is not int or version != FORMAT or not isinstance(board.get("entries"), list):
        raise SourceError("this board is damaged: it has no known format, or no entries", hint=_HINT)
    try:
        entries = TypeAdapter(list[Entry]).validate_json(json.dumps(board["entries"]))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise SourceError(
            f"this board is damaged: `entries.{one_line(where)}` is not as phipipe writes it", hint=_HINT
        ) from None
    for entry in entries:
        if complaint := _complaint(entry):
            raise SourceError(f"this board is damaged: `{one_line(entry.name)}` {complaint}", hint=_HINT)
    return entries


_HINT = "`phipipe run` writes board.json beside the packages"


def _complaint(entry: Entry) -> str | None:
    """What in an entry's values cannot be."""
    if entry.error is not None:
        return None
    if missing := [name for name in REQUIRED if name not in entry.metrics]:
        return f"has no `{missing[0]}`"
    if any(entry.metrics[name] <= 0 for name in REQUIRED[1:]):
        return "has no size"
    curves = (value for name in ("by_position", "quantiles") for value in entry.profile.get(name, ()))
    if min([*entry.metrics.values(), *entry.stderr.values(), *curves]) < 0:
        return "has a figure below zero"
    sanity = {name: isinstance(value, Sequence) for name, value in entry.sanity.items()}
    if sanity.get("answers_ended") is False or sanity.get("greedy_agreement") or sanity.get("repetition"):
        return "has sanity flags of another kind"
    return None if all(len(ends) == 2 for ends in entry.spread.values()) else "has a spread that is no pair"


# --- order, front, comparability


def done(entries: Iterable[Entry]) -> list[Entry]:
    """Those that came to something."""
    return [entry for entry in entries if entry.error is None]


def ranked(entries: Iterable[Entry]) -> list[Entry]:
    """Most fidelity per size first, failed ones last; names are made distinct."""
    ordered = sorted(
        entries, key=lambda e: (1, 0.0, 0.0, e.name) if e.error is not None else (0, -e.score, e.size, e.name)
    )
    taken: set[str] = set()
    distinct = []
    for entry in ordered:
        plain = one_line(entry.name)
        name = next(n for i in count(1) if (n := plain if i == 1 else f"{plain} ({i})") not in taken)
        taken.add(name)
        distinct.append(replace(entry, name=name))
    return distinct


def dominates(a: Entry, b: Entry) -> bool:
    """Whether ``a`` is as small and as faithful as ``b``, and better in one of the two."""
    return (a.size <= b.size and a.kld <= b.kld) and (a.size, a.kld) != (b.size, b.kld)


def front(entries: Iterable[Entry]) -> list[Entry]:
    """The Pareto front, smallest first."""
    kept: list[Entry] = []
    for entry in sorted(done(entries), key=lambda e: (e.size, e.kld)):
        last = kept[-1] if kept else entry  # the most faithful so far, and no larger
        if not dominates(last, entry):
            kept.append(entry)
    return kept


def behind(entries: Iterable[Entry]) -> dict[str, str]:
    """Every entry off the front → the most faithful one on it that dominates it, by name."""
    every = done(entries)
    best = front(every)
    sizes = [entry.size for entry in best]
    found = {}
    for entry in every:
        rival = best[bisect_right(sizes, entry.size) - 1]  # of those no larger, the last is the most faithful
        if dominates(rival, entry):
            found[entry.name] = best[bisect_left(sizes, rival.size)].name  # of equals, the first
    return found


def check_comparable(entries: Iterable[Entry]) -> None:
    """Fidelity compares only between builds of one model, scored on one text in one way.

    Raises:
        SourceError: names what differs, and between which two builds.
    """
    aspects: dict[str, Callable[[Entry], str]] = {
        "source model": lambda e: f"{e.source} {e.source_digest[:12]}",
        "evaluation text": lambda e: f"{e.text} {e.text_digest[:12]}",
        "number of tokens": lambda e: str(e.tokens),  # of the build: on a device its first ones are scored
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
        raise SourceError(f"these builds do not compare: their {what} differs: {a}, {b}", hint=advice)


def elsewhere(entries: Iterable[Entry]) -> frozenset[str]:
    """Names of those whose speed was not taken as most were: another machine, or another prompt."""
    every = done(entries)
    counted = Counter(e.conditions for e in every)
    usual = max(counted, key=counted.__getitem__, default=None)  # of equals, the first
    return frozenset(e.name for e in every if e.conditions != usual)


def marks(entry: Entry, away: frozenset[str]) -> str:
    """What must be known of its speed, as signs that ``MARKS`` explains."""
    target = {"emulated": "~", "false": "°"}.get(entry.on_target, "")
    return target + ("†" if entry.name in away else "")


@dataclass(frozen=True)
class Column:
    """One column of the board: ``value`` is what it sorts by, ``text`` what it shows."""

    title: str
    short: str  # its title where it is narrow
    value: Callable[[Entry], float | None]
    text: Callable[[Entry], str]
    speed: bool  # its cells carry marks


def _metric(name: str) -> Column:
    metric = METRICS[name]

    def value(entry: Entry) -> float | None:
        return entry.metrics[name] * metric.factor if name in entry.metrics else None

    def text(entry: Entry) -> str:
        found = value(entry)
        if found is None:
            return "–"
        if metric.is_size:
            return " ".join(report.size(found)) if found > 0 else "0"
        if name == "kld_mean":
            return ("≥ " if entry.reference else "") + report.with_error(found, entry.stderr.get(name))
        if metric.unit == "s":
            return f"{report.number(found)} s" if found >= 1 else f"{report.number(1000 * found)} ms"
        return report.number(found, metric.digits)

    return Column(metric.column, metric.heading, value, text, metric.kind == "speed")


COLUMNS = (
    *map(_metric, ("size_gib", "bits_per_weight", "kld_mean")),
    Column("on target", "target", lambda e: ON_TARGET.index(e.on_target), lambda e: e.on_target, speed=False),
    *map(_metric, ("top1", "ppl_ratio", "decode_tokens_per_s", "ttft_s", "peak_memory_gib")),
)


def cell(column: Column, entry: Entry, away: frozenset[str]) -> str:
    """What ``column`` shows of ``entry``, with its marks."""
    shown = column.text(entry)
    signs = marks(entry, away) if column.speed and column.value(entry) is not None else ""
    return f"{shown} {signs}" if signs else shown


def one_line(text: str) -> str:
    """Without line breaks and control characters: it may come from a tool that failed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def build_words(entry: Entry) -> str:
    return one_line(f"{entry.backend} {entry.scheme or entry.precision}")


def notes(entries: Sequence[Entry]) -> list[str]:
    """The explanations of those marks that occur."""
    away = elsewhere(entries)
    used = "".join(marks(e, away) + ("≥" if e.reference else "") for e in done(entries))
    return [f"{sign} {meaning}" for sign, meaning in MARKS.items() if sign in used]


@dataclass(frozen=True, kw_only=True)
class Pick:
    """What to ship to one kind of device; each choice with the words that justify it."""

    where: str
    choices: tuple[tuple[str, Entry, str], ...]  # reason, build, its figure
    caution: str  # what the numbers are not; empty if they are the device's own


def picks(entries: Iterable[Entry]) -> list[Pick]:
    """Per device and API: the smallest within the 4-bit yardstick, the most faithful quantized, the fastest."""
    every = ranked(entries)
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in done(every):
        groups.setdefault((entry.device, entry.api), []).append(entry)
    found = [_pick(device, api, members) for (device, api), members in groups.items()]
    return sorted(found, key=lambda pick: bool(pick.caution))  # stable: where numbers are the device's own, first


def _pick(device: str, api: str, members: Sequence[Entry]) -> Pick:
    away = elsewhere(members)
    sound = [e for e in members if e.sound]
    near = [e for e in sound if e.kld <= report.KLD_4_BIT[1]]
    quantized = [e for e in sound if e.precision.startswith("int")]
    # an emulator's speed says nothing; the build machine's at least orders the builds
    timed = [
        e for e in sound if "decode_tokens_per_s" in e.metrics and e.name not in away and e.on_target != "emulated"
    ]
    choices = []
    if near:
        best = min(near, key=lambda e: (e.size, e.kld))
        shown = f"{' '.join(report.size(best.size))}, mean KLD {report.number(best.kld)}"
        choices.append(("size", best, f"the smallest file within the 4-bit yardstick: {shown}"))
    if quantized:
        best = min(quantized, key=lambda e: (e.kld, e.size))
        choices.append(("fidelity", best, f"the closest quantized build: mean KLD {report.number(best.kld)}"))
    if timed:
        best = max(timed, key=lambda e: e.metrics["decode_tokens_per_s"])
        where = "" if best.on_target == "true" else " on the build machine, which is no such device"
        shown = report.number(best.metrics["decode_tokens_per_s"])
        choices.append(("answer speed", best, f"the fastest: {shown} tokens/s{where}"))
    where = device if api in device.casefold() else f"{device}, {api}"
    return Pick(where=where, choices=tuple(choices), caution=_caution(members, near))


def _caution(members: Sequence[Entry], near: Sequence[Entry]) -> str:
    kinds, said = {e.on_target for e in members}, []
    some = "" if len(kinds) == 1 else "Some: "
    if "emulated" in kinds:
        said.append(f"{some}the device was emulated, so its speed and memory are unknown.")
    if "false" in kinds:
        said.append(f"{some}not measured on the device: speed and memory are the build machine's.")
    if not near:
        said.append(f"No sound build is within the 4-bit yardstick (mean KLD {report.KLD_4_BIT[1]:g}).")
    if odd := [e.name for e in members if not e.sound]:
        said.append(f"Not considered, since they read text or chats unlike the original: {', '.join(odd)}.")
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in said)


def answer(entries: Iterable[Entry]) -> str:
    """The board in one sentence."""
    found = picks(entries)
    if not found:
        return "Nothing to ship: no build succeeded."
    pick = found[0]
    if not pick.choices:
        return f"Nothing to ship to {pick.where}: no build is sound."
    merged: dict[str, list[str]] = {}
    for reason, entry, _ in pick.choices:
        merged.setdefault(entry.name, []).append(reason)
    if len(merged) == 1 and len(pick.choices) > 1:
        return f"{pick.where}: ship {next(iter(merged))}: it leads in {' and '.join(r for r, _, _ in pick.choices)}."
    clauses = [f"{name} if {' or '.join(reasons)} matters most" for name, reasons in merged.items()]
    return f"{pick.where}: ship {'; '.join(clauses)}."
