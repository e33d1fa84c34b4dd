"""What commands print as JSON, by name: every document of ``--json``, field by field.

The schemas in ``schemas/output`` are made from these classes. Sizes are bytes, times are ISO 8601
in UTC, names of devices, backends, units and precisions are those of recipes. Every field is always
there; null says that there is no such thing. Names only ever join: those that are there keep their
meaning.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import PurePath
from typing import Literal

from phipipe import errors
from phipipe.steps import Json

# --- errors


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a file; line and column count from 1, null where the whole file is meant."""

    file: str
    line: int | None
    column: int | None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, with its own hint and exit code; ``file`` is null where it is in no
    file."""

    message: str
    hint: str | None
    code: int
    file: str | None
    line: int | None
    column: int | None


@dataclass(frozen=True, kw_only=True)
class Error:
    """Why a command failed: ``code`` is the exit code, ``kind`` its name, ``hint`` the next thing
    to try."""

    code: int
    kind: str
    message: str
    hint: str | None
    place: Place | None
    problems: list[Problem]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The document of a command that failed before it had anything else to say."""

    error: Error


def error_of(error: errors.PhipipeError) -> Error:
    """``error`` as data."""
    place = error.place
    return Error(
        code=error.exit_code,
        kind=type(error).__name__,
        message=error.message,
        hint=error.hint,
        place=None
        if place is None
        else Place(file=place.file, line=place.line, column=place.column),
        problems=problems_of(error),
    )


def problems_of(error: errors.PhipipeError, file: str | None = None) -> list[Problem]:
    """Everything that ``error`` says, one by one; ``file`` is where it is if the error does not
    know."""
    if error.parts:
        return [problem for part in error.parts for problem in problems_of(part, file)]
    nowhere = errors.Place(file) if file else None
    problems: list[tuple[str, errors.Place | None]] = [*error.problems] or [
        (error.message, nowhere)
    ]
    return [
        Problem(
            message=message,
            hint=error.hint,
            code=error.exit_code,
            file=place and place.file,
            line=place and place.line,
            column=place and place.column,
        )
        for message, place in problems
    ]


def usage_error(message: str, command: str | None) -> Error:
    """What the command line itself found wrong with the words of ``command``."""
    hint = f"{command or 'phipipe'} --help"
    problem = Problem(message=message, hint=hint, code=2, file=None, line=None, column=None)
    return Error(
        code=2, kind="UsageError", message=message, hint=hint, place=None, problems=[problem]
    )


# --- recipes, plans, runs


@dataclass(frozen=True, kw_only=True)
class Build:
    """One build of a recipe."""

    name: str
    device: str
    unit: str | None
    backend: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Validated:
    """A recipe file that was checked: one entry in ``problems`` for everything that is wrong."""

    recipe: str
    ok: bool
    builds: list[Build]
    problems: list[Problem]


@dataclass(frozen=True, kw_only=True)
class Warned:
    """A rule that applies: ``level`` is "error" or "warning"."""

    rule: str
    level: str
    message: str
    hint: str | None


@dataclass(frozen=True, kw_only=True)
class DoneStep:
    """A step that was done, or had been: what it took is null where it came from the cache."""

    name: str
    key: str
    digest: str
    cached: bool
    shared: bool
    bytes: int
    seconds: float | None
    cpu_seconds: float | None
    peak_rss_bytes: int | None
    peak_anon_bytes: int | None
    machine: str | None


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Mean KL divergence with keys and values ``kept`` in few bits (``kind`` in our words: q8,
    q4), and with the runtime's usual cache, in nats; all else as it runs by default. ``is_usual``:
    the runtime keeps its cache so by default."""

    kind: str
    kept: str
    is_usual: bool
    kld: float
    kld_stderr: float
    usual_kld: float
    usual_kld_stderr: float
    positions: int


@dataclass(frozen=True, kw_only=True)
class Built:
    """How a build ended. ``evaluation``, ``generation``, ``speed``: as its steps wrote them;
    ``cache`` where a quantized one was asked for."""

    name: str
    device: str
    unit: str
    backend: str
    precision: str
    ok: bool
    package: str | None
    seconds: float
    on_target: str
    warnings: list[Warned]
    evaluation: dict[str, Json] | None
    generation: dict[str, Json] | None = None
    cache: Cache | None = None
    speed: dict[str, Json] | None
    steps: list[DoneStep]
    error: Error | None


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signed a package. ``fingerprint`` is that of a key's PEM text or of a certificate;
    ``subject`` is whom the certificate names, or the identity that ``issuer`` vouches for."""

    kind: Literal["key", "certificate", "sigstore"]
    fingerprint: str | None
    subject: str | None
    issuer: str | None


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a package's signature is worth. `unasked`: nobody said whom to trust, and the signer is
    not proven."""

    state: Literal["unsigned", "unasked", "trusted", "refused"]
    policy: Literal["off", "warn", "enforce"]
    signer: Signer | None
    message: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A package that was checked; ``signature`` is null where its files are not as they were."""

    package: str
    ok: bool
    findings: list[str]
    signature: Signature | None


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A package that was signed."""

    package: str
    signature: str
    signer: Signer


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server over a package: ``base_url`` is what OpenAI clients take as such, ``model`` the name
    that requests give; ``context`` in tokens, answer included."""

    package: str
    base_url: str
    model: str
    context: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A file by which two packages differ."""

    path: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """A package that was made again: ``differences`` is empty where it is the same bit for bit,
    ``reasons`` says why it may not be, the likeliest first. The results of the steps in
    ``taken_over`` are the package's own. ``rebuilt``: the new package; null where none was kept."""

    package: str
    equal: bool
    differences: list[Difference]
    reasons: list[str]
    taken_over: list[str]
    rebuilt: str | None


# --- as JSON


def plain(value: object) -> Json:
    """``value`` as JSON can say it: documents become mappings, times ISO 8601, what is no number
    becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.datetime):
        return iso(value)
    if isinstance(value, str | PurePath):
        # half a surrogate pair stands for a byte of a name that is not UTF-8
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def iso(moment: datetime.datetime) -> str:
    """A time as documents have it."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
