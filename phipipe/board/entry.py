"""A build on the board: what it is, what was measured, and where the numbers come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pydantic import ValidationError

from phipipe.errors import SourceError
from phipipe.evaluate import sampling
from phipipe.evaluate.answer_reports import AnswerFigures
from phipipe.evaluate.reports import Metrics, Sampling, Sanity, Speed
from phipipe.execution.results import Outcome
from phipipe.metrics import names
from phipipe.package import card, figures
from phipipe.package.description import Description, Text

SPEED = names("speed")
ACCEPTED, MISREAD = "tokenizer_accepted", "tokenizer_difference"  # keys beside sanity's flags
REQUIRED = ("kld_mean", "size_gib", "bits_per_weight")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One build: what it is, what was measured, and where the numbers come from."""

    # read by pydantic in ``load``: a board is data from outside
    __pydantic_config__: ClassVar[Mapping[str, object]] = {
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
    # where builds may have scored different windows: the tokens that the figures rest on, why no
    # more, and what ``sampling.over`` needs to compare; 0: all ``tokens``
    scored: int = 0
    stopped: str = ""
    windows: Sequence[int] = field(default_factory=list)
    by_window: Mapping[str, Sequence[float]] = field(default_factory=dict)
    baseline_ppl: float = 0.0
    change: str = ""  # of an adapter: what it changes of its base, in words
    weights: str = ""  # the digest of learned weights, which other runtimes may share
    # by the names of ``metrics.METRICS``
    metrics: Mapping[str, float] = field(default_factory=dict)
    knob: str | None = None  # what is otherwise in ``kld_run`` (``reports.Run``); None: not scored
    stderr: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, Sequence[float]] = field(default_factory=dict)
    profile: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sanity: Mapping[str, bool | float | Sequence[bool] | None] = field(default_factory=dict)
    host: Mapping[str, str | int | float | None] = field(default_factory=dict)
    prompt_tokens: int = 0
    phipipe: str = ""
    tools: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)  # step → key
    # on the device, by `phipipe measure`: takes the place of the build's own entry
    measured: bool = False
    reference: bool = False  # scored by what the package carries: its divergence is a lower bound

    @property
    def kld(self) -> float:
        return self.metrics["kld_mean"]

    @property
    def size(self) -> float:
        return self.metrics["size_gib"]

    @property
    def sampling(self) -> Sampling | None:
        """What it scored, where builds may have scored different windows."""
        if not self.windows:
            return None
        return Sampling(
            tokens=self.scored,
            cap=self.tokens,
            reason=self.stopped,
            windows=list(self.windows),
            figures={name: list(values) for name, values in self.by_window.items()},
        )

    @property
    def conditions(self) -> tuple[str, int]:
        """What two speeds must share to compare."""
        return figures.host_words(self.host), self.prompt_tokens

    @property
    def sound(self) -> bool:
        """Whether it reads text and chats as the original does; nothing else is worth shipping."""
        reads = self.sanity.get("tokenizer_equal", True) or self.accepted
        return bool(reads and self.sanity.get("chat_template_equal", True))

    @property
    def accepted(self) -> bool:
        """Whether it reads some text otherwise than the original, and its recipe accepts that."""
        return bool(self.sanity.get(ACCEPTED))


def _told(sanity: Sanity, accepted: bool) -> dict[str, bool | float | Sequence[bool] | None]:
    """What a package or report says, without the text that is read otherwise; with whether that was
    ``accepted``."""
    told = {name: value for name, value in sanity.as_json().items() if name != MISREAD}
    return {**told, ACCEPTED: True} if accepted and sanity.tokenizer_equal is False else told


def from_manifest(manifest: Description) -> Entry:
    """The entry of a finished package, by its manifest.

    Raises:
        SourceError: figures are missing without which a build cannot be compared.
    """
    source, steps, baseline = manifest.source, manifest.steps, manifest.fidelity.baseline
    tools = dict(tool for step in steps.values() for tool in card.main_tools(step))
    entry = Entry(
        name=manifest.name,
        backend=manifest.backend,
        precision=manifest.precision,
        backend_title=manifest.backend_title,
        scheme=manifest.scheme,
        device=manifest.device.title,
        api=manifest.api,
        on_target=manifest.on_target,
        source=source.title,
        source_digest=source.digest,
        parameters=source.parameters,
        text=_text_words(manifest.recipe.evaluate.text),
        text_digest=steps["text"].digest,
        tokens=baseline.tokens,
        window=baseline.window,
        skip=baseline.skip,
        baseline_ppl=baseline.ppl,
        sanity={ACCEPTED: "tokenizer" in manifest.recipe.evaluate.accept},
        change=_change(manifest),
        weights=manifest.weights.digest if manifest.weights else "",
        phipipe=manifest.phipipe,
        tools=dict(sorted(tools.items())),
        keys={name: steps[name].key for name in sorted(steps)},
    )
    entry = _with_speed(_with_fidelity(entry, manifest.fidelity), manifest.speed)
    entry = _with_answers(entry, manifest.fidelity.generation)
    if wrong := complaint(entry):
        raise SourceError(
            f"the manifest of `{one_line(entry.name)}` {wrong}", hint="build the package again"
        )
    return entry


def _change(manifest: Description) -> str:
    change = manifest.fidelity.change
    return figures.adapter_change(change, manifest.fidelity.baseline.ppl) if change else ""


def measured(manifest: Description, evaluation: Metrics | None, speed: Speed) -> Entry:
    """The entry of a package that was measured on its device, by the reference data that it
    carries.

    Without an ``evaluation`` (a device that gives no logits) fidelity stays that of the build.
    """
    built = from_manifest(manifest)
    kept = {name: value for name, value in built.metrics.items() if name not in SPEED}
    here = replace(built, on_target="true", measured=True, metrics=kept)
    entry = _with_speed(here, speed)
    if evaluation is None:
        return entry
    # of the artifact, without what lies beside it
    sizes = {name: built.metrics[name] for name in REQUIRED[1:]}
    entry = _with_fidelity(replace(entry, reference=True), evaluation)
    return replace(entry, metrics={**entry.metrics, **sizes})


def _with_fidelity(entry: Entry, fidelity: Metrics) -> Entry:
    without_run = {name: value for name, value in entry.metrics.items() if name != "kld_run"}
    return replace(
        _with_sampling(entry, fidelity.sampling),
        metrics={**without_run, **fidelity.metrics},
        knob=fidelity.run.how if fidelity.run else None,
        stderr=fidelity.stderr,
        profile=fidelity.profile,
        sanity=_told(fidelity.sanity, entry.accepted),
    )


def _with_sampling(entry: Entry, told: Sampling | None) -> Entry:
    if told is None:
        return replace(entry, scored=0, stopped="", windows=[], by_window={})
    return replace(
        entry,
        scored=told.tokens,
        stopped=told.reason,
        windows=told.windows,
        by_window=told.figures,
    )


def _with_answers(entry: Entry, answers: AnswerFigures | None) -> Entry:
    if answers is None:
        return entry
    return replace(
        entry,
        metrics={**entry.metrics, **answers.metrics},
        stderr={**entry.stderr, **answers.stderr},
    )


def _with_speed(entry: Entry, speed: Speed) -> Entry:
    return replace(
        entry,
        metrics={**entry.metrics, **speed.metrics},
        spread=speed.spread,
        host=speed.host,
        prompt_tokens=speed.prompt_tokens,
    )


def of_measurement(manifest: Description, outcome: Outcome) -> Entry:
    """What was measured on the device, as an entry that takes the place of the build's own."""
    speed = outcome.load("measure", Speed)
    assert speed is not None  # the only step that every such plan has
    return measured(manifest, outcome.fidelity, speed)


def failed(
    name: str, backend: str, precision: str, message: str, device: str = "", api: str = ""
) -> Entry:
    """The entry of a build that came to nothing; of its device at least the title may be known."""
    return Entry(
        name=name,
        backend=backend,
        precision=precision,
        error=message or "failed",
        device=device,
        api=api,
    )


def _text_words(text: Text) -> str:
    return text.builtin or (text.dataset.repo if text.dataset else None) or text.file or "unnamed"


def complaint(entry: Entry) -> str | None:
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
    if entry.sampling is not None and sampling.problem(entry.sampling):
        return "has figures of windows that do not belong together"
    try:
        Sanity.model_validate(entry.sanity)
    except ValidationError:
        return "has sanity flags of another kind"
    pairs = all(len(ends) == 2 for ends in entry.spread.values())
    return None if pairs else "has a spread that is no pair"


def one_line(text: str) -> str:
    """Without line breaks and control characters: it may come from a tool that failed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
