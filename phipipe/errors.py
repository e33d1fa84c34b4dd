"""The failures a user can see: one class, one exit code, one next command.

PhipipeError (70)         a bug, if nothing narrower fits
├── RecipeError (2)       the recipe or the command line is wrong
├── TargetError (3)       the recipe is right, but the target cannot do it
├── ToolchainError (4)    a backend's environment is missing or damaged
├── StepFailed (5)        a step raised, or left something unfit behind
├── StepKilled (6)        a step was ended, or is known to be too large for this machine: memory, signal, timeout
├── GateFailed (7)        the artifact is worse than the recipe allows
├── SourceError (8)       the model or a text cannot be had, or is not safe to load
├── StoreError (9)        the cache cannot be written or read
└── Interrupted (130/143) the user, or the system, asked us to stop
    └── Skipped           another build failed first, and the user wants no more started then
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


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

    The message says what, with the user's own names in backticks; ``hint`` is what to do. ``problems`` are what
    the message tells, one by one, where each has a place in a file of the user's.
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str | None = None, problems: Sequence[Located] = ()) -> None:
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
    """A build of several that was not finished because another one failed; never a run's own exit code."""
