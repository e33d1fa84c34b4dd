"""The failures a user can see: one class, one exit code, one next command.

PhipipeError (70)         a bug, if nothing narrower fits
├── RecipeError (2)       the recipe or the command line is wrong
├── TargetError (3)       the recipe is right, but the target cannot do it
├── ToolchainError (4)    a backend's environment is missing or damaged
├── StepFailed (5)        a step raised, or left something unfit behind
├── StepKilled (6)        a step was ended, or is known to be too large for this machine: memory,
signal, timeout ├── GateFailed (7)        the artifact is worse than the recipe allows
├── SourceError (8)       the model or a text cannot be had, or is not safe to load
├── StoreError (9)        the cache cannot be written or read
└── Interrupted (130/143) the user, or the system, asked us to stop
    └── Skipped           another build failed first, and the user wants no more started then

``encoded`` and ``decoded`` carry them across the borders of processes and machines, and into JSON
for users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple


class Place(NamedTuple):
    """Where in a file; line and column count from 1, None where the whole file is meant."""

    file: str
    line: int | None = None
    column: int | None = None


class Located(NamedTuple):
    """One of several things that are wrong, in words without place or picture."""

    message: str
    place: Place


class PhipipeError(Exception):
    """A failure with a message for the user and, where there is one, the next command to try.

    The message says what, with the user's own names in backticks; ``hint`` is what to do.
    ``problems`` are what the message tells, one by one, where each has a place in a file of the
    user's.
    """

    exit_code = 70
    # what it was made of, where it stands for several (``several.as_one``)
    parts: tuple[PhipipeError, ...] = ()
    # a kind's own attributes, all of them texts: they cross borders with it
    DETAILS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, message: str, *, hint: str | None = None, problems: Sequence[Located] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems = tuple(problems)

    @property
    def place(self) -> Place | None:
        """Where the first problem is."""
        return self.problems[0].place if self.problems else None


class RecipeError(PhipipeError):
    exit_code = 2


class TargetError(PhipipeError):
    exit_code = 3


class ToolchainError(PhipipeError):
    exit_code = 4


class StepFailed(PhipipeError):
    exit_code = 5


class StepKilled(PhipipeError):
    exit_code = 6


class GateFailed(PhipipeError):
    exit_code = 7


class SourceError(PhipipeError):
    exit_code = 8


class StoreError(PhipipeError):
    exit_code = 9


class Interrupted(PhipipeError):
    """Ctrl-C (exit code 130) or SIGTERM (143)."""

    exit_code = 130

    def __init__(self, message: str = "stopped", *, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Skipped(Interrupted):
    """A build of several that was not finished because another one failed; never a run's own exit
    code."""


UNREADABLE = "a failure was reported in a form that makes no sense here"
SAME_VERSION = "use the same phipipe on both sides"
ENDINGS = (130, 143)  # the exit codes that one kind, ``Interrupted``, has


def encoded(error: PhipipeError) -> dict[str, object]:
    """``error`` as JSON: kind, code, message, hint, problems (message, file, line, column),
    details."""
    return {
        "kind": type(error).__name__,
        "code": error.exit_code,
        "message": str(error.message),
        "hint": None if error.hint is None else str(error.hint),
        "problems": [{"message": message, **place._asdict()} for message, place in error.problems],
        "details": {name: str(getattr(error, name, "")) for name in error.DETAILS},
    }


def decoded(described: object, *, before: str = "") -> PhipipeError:
    """The error that ``encoded`` described; ``before`` comes before its message.

    Who described it may be older or newer, or not in its right mind: a kind that is unknown here
    becomes the plain one of its exit code, what makes no sense is left out, and nothing is ever
    raised.
    """
    fields = _mapping(described)
    code, message, hint = fields.get("code"), fields.get("message"), fields.get("hint")
    details = {
        name: value
        for name, value in _mapping(fields.get("details")).items()
        if isinstance(value, str)
    }
    kind = _kind(fields.get("kind"), code, details)
    error = kind.__new__(kind)
    if not isinstance(message, str):
        message, hint = UNREADABLE, SAME_VERSION
    located = map(_located, _list(fields.get("problems")))
    problems = [problem for problem in located if problem]
    PhipipeError.__init__(
        error, before + message, hint=hint if isinstance(hint, str) else None, problems=problems
    )
    for name in kind.DETAILS:
        setattr(error, name, details[name])
    if isinstance(error, Interrupted) and code in ENDINGS:
        error.exit_code = code
    return error


def kinds(of: type[PhipipeError] = PhipipeError) -> Iterator[type[PhipipeError]]:
    """``of`` and all that is derived from it, as far as it is imported; the plain ones first."""
    level = [of]
    while level:
        yield from level
        level = [narrower for kind in level for narrower in kind.__subclasses__()]


def _kind(name: object, code: object, details: Mapping[str, str]) -> type[PhipipeError]:
    """The kind called ``name`` if ``details`` are what it needs, or the plain one that ends with
    ``code``."""
    usable = [kind for kind in kinds() if details.keys() >= set(kind.DETAILS)]
    named = [kind for kind in usable if kind.__name__ == name]
    alike = [
        kind
        for kind in usable
        if kind.exit_code == code or (kind is Interrupted and code in ENDINGS)
    ]
    return next(iter([kind for kind in named if kind in alike] or named or alike), StepFailed)


def _located(described: object) -> Located | None:
    fields = _mapping(described)
    message, file = fields.get("message"), fields.get("file")
    if not isinstance(message, str) or not isinstance(file, str):
        return None
    line, column = (
        number if type(number) is int else None
        for number in (fields.get("line"), fields.get("column"))
    )
    return Located(message, Place(file, line, column))


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
