"""What was measured of an artifact, as its files say it: a model for each file, parsed where the
file is read.

Fields stand in the order in which the files have them. What a file says beyond them (a later
phipipe may add some) is kept. What came later than the first phipipe has a default.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, InstanceOf, TypeAdapter, ValidationError

from phipipe.errors import StoreError
from phipipe.files.json_files import shown
from phipipe.steps import Json

GATES, EMULATION = "gates.json", "emulation.json"
_HINT = "phipipe cache verify"

Number = int | float  # a whole number stays one, so that files keep their bytes
Figures = dict[str, Number]
Words = InstanceOf[str]  # also what UTF-8 has no bytes for, such as half a surrogate pair


class Report(BaseModel):
    """Something that a file holds; nothing changes after it was read."""

    FILE: ClassVar[str] = ""  # where it stands alone: the file's name
    model_config = ConfigDict(frozen=True, strict=True, extra="allow", defer_build=True)

    def as_json(self) -> dict[str, Json]:
        """The content as the file has it."""
        return self.model_dump(exclude_unset=True)


R = TypeVar("R", bound=Report)
T = TypeVar("T")


class Chat(Report):
    """A question to the original, as its chat template renders it, and its greedy answer."""

    prompt: Words
    rendered: Words
    ids: list[int]
    answer: list[int]
    text: Words


class Reading(Report):
    """A text and the ids that the original's tokenizer makes of it; ``kind``: "text" or "chat"."""

    kind: Words
    text: Words
    ids: list[int]


class Scored(Report):
    """On what the original was scored, and how well it did."""

    tokens: int
    window: int
    skip: int = 0
    ppl: Number
    ppl_stderr: Number = 0.0


class Baseline(Scored):
    """``baseline.json``: what an artifact is compared with, but for the log-probabilities."""

    FILE = "baseline.json"

    parity_ids: list[int]
    chats: list[Chat]
    readings: list[Reading] = []


class Answer(Report):
    """What an artifact says to a question."""

    prompt: Words
    text: Words


class Misread(Report):
    """The shortest text that the packaged tokenizer reads otherwise than the original's; ``kind``
    "chat": plain text is read alike; "marks": only texts with combining characters are not, which
    stops no build."""

    kind: Words
    text: Words  # as a programmer writes it, on one line
    expected: list[int]
    got: list[int]


class Sanity(Report):
    """What a table of averages hides. None where nobody asked."""

    __pydantic_extra__: dict[str, bool | Number | list[bool] | None]

    tokenizer_equal: bool | None = None
    tokenizer_difference: Misread | None = None
    chat_template_equal: bool | None = None
    greedy_agreement: Number | None = None
    answers_ended: list[bool] = []
    repetition: Number | None = None


class Run(Report):
    """How ``kld_run`` was scored: ``how`` is what the runtime does otherwise by default than
    ``kld_mean`` has it do, in words, and empty where nothing is."""

    how: Words
    positions: int = 0


class Sampling(Report):
    """Windows that were scored, by their places in the text, with means over their positions."""

    tokens: int
    cap: int
    reason: Words  # of ``sampling.REASONS``
    relative_error: Number | None = None  # of the mean KL divergence
    windows: list[int]
    figures: dict[str, list[Number]]


class Metrics(Report):
    """``metrics.json``: how far an artifact is from the original, by the names of
    ``metrics.METRICS``. ``run``: none where nobody scored it as it runs; ``sampling``: in full."""

    FILE = "metrics.json"

    metrics: Figures
    stderr: Figures = {}
    positions: int = 0
    profile: dict[str, list[Number]] = {}
    sanity: Sanity = Sanity()
    answers: list[Answer] = []
    run: Run | None = None
    sampling: Sampling | None = None


class Speed(Report):
    """``speed.json``: how fast an artifact is, and where; spreads are lowest and highest."""

    FILE = "speed.json"

    metrics: Figures
    spread: dict[str, list[Number]] = {}
    host: dict[str, Words | Number | None] = {}
    prompt_tokens: int = 0
    new_tokens: int = 0


class Picture(Report):
    """A picture and what the original says of it."""

    name: Words
    vectors: int
    answer: list[int]
    text: Words


class Sight(Report):
    """``vision.json`` of the original: the question, by parts, and the pictures."""

    FILE = "vision.json"

    prompt: Words
    before: list[int]
    after: list[int]
    pictures: list[Picture]


class Described(Report):
    """What an artifact says of a picture, beside what the original says."""

    picture: Words = ""
    text: Words
    original: Words


class Vision(Report):
    """``vision.json`` of an artifact: what it makes of the pictures."""

    FILE = "vision.json"

    metrics: Figures = {}
    kld_by_picture: Figures = {}
    positions: int = 0
    vectors: dict[str, int] = {}
    greedy_agreement: Number = 0.0
    question: Words = ""
    answers: list[Described] = []


class Change(Report):
    """``change.json``: the original beside the base that an adapter was merged into, on the same
    text; no figures where the two read the text as other tokens."""

    FILE = "change.json"

    metrics: Figures = {}
    stderr: Figures = {}
    positions: int = 0
    base_ppl: Number


class Parity(Report):
    """``parity.json``: an unquantized conversion beside the original; ``layers`` where only the
    first ones were compared."""

    FILE = "parity.json"

    kld_mean: Number
    limit: Number = 0.0
    layers: int | None = None


class Rounding(Report):
    """``rounding.json``: how far the original itself moves when its weights, and what they are
    multiplied with, are rounded to ``dtype``."""

    FILE = "rounding.json"

    dtype: str
    kld_mean: Number


class Verdict(Report):
    """A gate, in ``gates.json``: the limits that the recipe sets, and the value."""

    metric: Words
    value: Number | None = None
    min: Number | None = None
    max: Number | None = None
    passed: bool


def read(kind: type[R], folder: Path) -> R:
    """The report of this kind in ``folder``.

    Raises:
        StoreError: it is damaged; names the place.
    """
    return _parsed(TypeAdapter(kind), folder / kind.FILE)


def verdicts(folder: Path) -> list[Verdict]:
    """The gates in ``folder``.

    Raises:
        StoreError: they are damaged; names the place.
    """
    return _parsed(TypeAdapter(list[Verdict]), folder / GATES)


def _parsed(kind: TypeAdapter[T], path: Path) -> T:
    try:
        return kind.validate_python(json.loads(path.read_text("utf-8")))
    except ValidationError as error:
        where = place(error)
        reason = f"`{shown(where)}` is not" if where else "it is not"
        raise _damaged(path, f"{reason} as phipipe writes it") from None
    except ValueError as error:
        raise _damaged(path, f"it is not valid JSON: {error}") from None


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(f"`{path}` is damaged: {reason}", hint=_HINT)


def place(error: ValidationError) -> str:
    """Where the first thing lies that is wrong, as a dotted path; empty where all is meant."""
    return ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])


def dump(value: Json) -> str:
    """The one way in which our JSON files are written, of figures that are all finite."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write(folder: Path, report: Report) -> None:
    """Write ``report`` into ``folder``, with sorted keys; no figure may be NaN or infinite."""
    (folder / report.FILE).write_text(dump(report.as_json()), "utf-8")


def write_verdicts(folder: Path, verdicts: Iterable[Verdict]) -> None:
    """Write the gates into ``folder``."""
    (folder / GATES).write_text(dump([verdict.as_json() for verdict in verdicts]), "utf-8")


def write_in_order(path: Path, report: Mapping[str, Json]) -> None:
    """Write a report with its keys as they stand."""
    path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
