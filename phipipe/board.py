"""The fidelity board: several builds of one model side by side, and which of them to ship.

Pure functions over what finished packages' manifests hold; a build that failed has an entry too.
Builds are ordered by fidelity per size, ``-log10(mean KL divergence) / bits per weight``: decimal
digits in which the predictions agree with the original's, per bit spent on a weight. What to ship
to which device, and what is behind what there, ``picks`` decides.

Fidelity compares across machines, speed does not: entries measured on another machine, or with a
prompt of another length, than most are marked.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal

from phipipe import __version__, card, json_files, picks, remedies
from phipipe.errors import SourceError
from phipipe.metrics import SPEEDS
from phipipe.picks import Answer, Candidate, Speed

TYPE = "phipipe-board"
FORMAT = 1
ZERO = 1e-12  # what a divergence of 0 counts as wherever a logarithm is taken
REQUIRED = ("kld_mean", "size_gib", "bits_per_weight")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One build: what it is, what was measured, and where the numbers come from."""

    # read by pydantic in ``load``: a board is data from outside
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
    }

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
    metrics: Mapping[str, float] = field(
        default_factory=dict
    )  # by the names of ``metrics.METRICS``
    stderr: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, Sequence[float]] = field(default_factory=dict)
    profile: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sanity: Mapping[str, bool | float | Sequence[bool] | None] = field(default_factory=dict)
    host: Mapping[str, str | int | float | None] = field(default_factory=dict)
    prompt_tokens: int = 0
    phipipe: str = ""
    tools: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)  # step → key
    measured: bool = (
        False  # on the device, by `phipipe measure`: takes the place of the build's own entry
    )
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
        return all(
            self.sanity.get(name, True) for name in ("tokenizer_equal", "chat_template_equal")
        )


def from_manifest(manifest: Mapping[str, Any]) -> Entry:
    """The entry of a finished package, by its manifest.

    Raises:
        SourceError: figures are missing without which a build cannot be compared.
    """
    fidelity, speed, source, steps = (
        manifest[name] for name in ("fidelity", "speed", "source", "steps")
    )
    tools = {
        n: v
        for step in steps.values()
        for n, v in step["tools"].items()
        if card.MAIN_TOOLS.fullmatch(n)
    }
    baseline = fidelity["baseline"]
    made = Entry(
        **{
            name: manifest[name]
            for name in ("name", "backend", "precision", "backend_title", "scheme", "api")
        },
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
    if complaint := _complaint(made):
        raise SourceError(
            f"the manifest of `{one_line(made.name)}` {complaint}", hint="build the package again"
        )
    return made


def measured(
    manifest: Mapping[str, Any], evaluation: Mapping[str, Any] | None, speed: Mapping[str, Any]
) -> Entry:
    """The entry of a package that was measured on its device, by the reference data that it
    carries.

    Without an ``evaluation`` (a device that gives no logits) fidelity stays that of the build.
    """
    built = from_manifest(manifest)
    kept = {name: value for name, value in built.metrics.items() if name not in SPEEDS}
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
    sizes = {
        name: built.metrics[name] for name in REQUIRED[1:]
    }  # of the artifact, without what lies beside it
    return replace(
        entry,
        reference=True,
        metrics={**entry.metrics, **evaluation["metrics"], **sizes},
        stderr=evaluation["stderr"],
        profile=evaluation["profile"],
        sanity=evaluation["sanity"],
    )


def failed(
    name: str, backend: str, precision: str, message: str, device: str = "", api: str = ""
) -> Entry:
    """The entry of a build that came to nothing; of its device at least the title may be known."""
    told = message or "failed"
    return Entry(
        name=name, backend=backend, precision=precision, error=told, device=device, api=api
    )


def _text_words(recipe: Mapping[str, Any]) -> str:
    text = recipe.get("evaluate", {}).get("text", {})
    return str(
        text.get("builtin") or text.get("dataset", {}).get("repo") or text.get("file") or "unnamed"
    )


def host_words(host: Mapping[str, Any]) -> str:
    """The machine in one line."""
    cores = (
        f"{host['cores']} cores of {host['processor']}"
        if host.get("cores") and host.get("processor")
        else ""
    )
    memory = f"{host['memory_gib']} GiB of memory" if host.get("memory_gib") else ""
    system = " ".join(str(host[name]) for name in ("system", "machine") if host.get(name))
    return ", ".join(part for part in (cores, memory, system) if part) or "an unrecorded machine"


def dump(entries: Iterable[Entry]) -> str:
    """The text of ``board.json``: the entries, and the answers that follow from them."""
    every = ranked(entries)
    board: dict[str, Any] = {"type": TYPE, "format": FORMAT, "phipipe": __version__}
    board |= {"entries": [asdict(e) for e in every], "picks": [asdict(a) for a in answers(every)]}
    return json.dumps(board, indent=2, sort_keys=True, allow_nan=False) + "\n"


def load(text: str) -> list[Entry]:
    """The entries of a ``board.json``.

    Raises:
        SourceError: it is something else, damaged, or a newer phipipe wrote it.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        board = json_files.parse(text.encode("utf-8", "replace"), Path("board.json"))
    except SourceError as error:
        why = error.message.partition(" is not valid JSON: ")[2]
        raise SourceError(
            f"this is no board of phipipe: it is not valid JSON: {why}", hint=_HINT
        ) from None
    if not isinstance(board, dict) or board.get("type") != TYPE:
        raise SourceError(f"this is no board of phipipe: its `type` is not `{TYPE}`", hint=_HINT)
    version = board.get("format")
    if type(version) is int and version > FORMAT:
        raise SourceError(
            f"this board was made by a newer phipipe: its format is {version}, this phipipe "
            f"reads up to {FORMAT}",
            hint="install the newest phipipe",
        )
    if type(version) is not int or version != FORMAT or not isinstance(board.get("entries"), list):
        raise SourceError(
            "this board is damaged: it has no known format, or no entries", hint=_HINT
        )
    try:
        entries = TypeAdapter(list[Entry]).validate_json(json.dumps(board["entries"]))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise SourceError(
            f"this board is damaged: `entries.{one_line(where)}` is not as phipipe writes it",
            hint=_HINT,
        ) from None
    for entry in entries:
        if complaint := _complaint(entry):
            raise SourceError(
                f"this board is damaged: `{one_line(entry.name)}` {complaint}", hint=_HINT
            )
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
    if not all(math.isfinite(value) for value in (*entry.metrics.values(), *entry.stderr.values())):
        return "has a figure that is no number"
    curves = (
        value for name in ("by_position", "quantiles") for value in entry.profile.get(name, ())
    )
    if min([*entry.metrics.values(), *entry.stderr.values(), *curves]) < 0:
        return "has a figure below zero"
    sanity = {name: isinstance(value, Sequence) for name, value in entry.sanity.items()}
    if (
        sanity.get("answers_ended") is False
        or sanity.get("greedy_agreement")
        or sanity.get("repetition")
    ):
        return "has sanity flags of another kind"
    return (
        None
        if all(len(ends) == 2 for ends in entry.spread.values())
        else "has a spread that is no pair"
    )


# --- order, answers, comparability


def done(entries: Iterable[Entry]) -> list[Entry]:
    """Those that came to something."""
    return [entry for entry in entries if entry.error is None]


def ranked(entries: Iterable[Entry]) -> list[Entry]:
    """Most fidelity per size first, failed ones last; names are made distinct."""
    ordered = sorted(
        entries,
        key=lambda e: (*_worth(e), e.name, e.device, e.api, e.backend, e.precision, e.scheme),
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


def _worth(entry: Entry) -> tuple[int, float, float]:
    return (1, 0.0, 0.0) if entry.error is not None else (0, -entry.score, entry.size)


def answers(entries: Iterable[Entry]) -> tuple[Answer, ...]:
    """What to ship to each device that was asked for; where builds share a name, by the names of
    ``ranked``."""
    return picks.answers(candidates(ranked(entries)))


def candidates(entries: Sequence[Entry]) -> list[Candidate]:
    """``entries``, whose names are distinct, as decisions see them."""
    there = {(e.device, e.backend, e.precision) for e in done(entries)}
    return [
        _candidate(e, {p for d, b, p in there if (d, b) == (e.device, e.backend)}) for e in entries
    ]


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
        place=entry.on_target,
        speed=Speed.of(value, spread, entry.conditions)
        if value > 0 and entry.on_target == "true"
        else None,
        wider=remedies.wider(entry.backend, entry.api, entry.precision, taken),
        finer=remedies.finer(entry.backend, entry.api, entry.precision, entry.scheme),
    )


def lines(found: Sequence[Answer]) -> list[str]:
    """The board in a sentence for each device."""
    return [answer.line for answer in found] or ["Nothing to ship: no build succeeded."]


def standing(found: Iterable[Answer]) -> tuple[frozenset[str], dict[str, str]]:
    """Names of those on their device's Pareto front; of others, who is ahead of them."""
    every = list(found)
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
        "number of tokens": lambda e: str(
            e.tokens
        ),  # of the build: on a device its first ones are scored
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


def elsewhere(entries: Iterable[Entry]) -> frozenset[str]:
    """Names of those whose speed was not taken as most were: another machine, or another prompt."""
    every = done(entries)
    counted = Counter(e.conditions for e in every)
    usual = max(counted, key=counted.__getitem__, default=None)  # of equals, the first
    return frozenset(e.name for e in every if e.conditions != usual)


def one_line(text: str) -> str:
    """Without line breaks and control characters: it may come from a tool that failed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
