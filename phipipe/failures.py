"""Several failures that a user shall see at once, as one error."""

from __future__ import annotations

from collections.abc import Sequence

from phipipe.errors import PhipipeError

MOST = 50  # failures that one message tells; nobody reads more


def as_one(errors: Sequence[PhipipeError]) -> PhipipeError:
    """One error that says all of ``errors``, each once and with its own hint.

    Its class and exit code are those of the error with the highest exit code, as a batch ends: what
    comes later in a build counts as worse. ``parts`` are the errors themselves.
    """
    by_words = {(type(e), e.message, e.hint, e.problems): e for e in errors}
    parts = list(by_words.values())
    if len(parts) == 1:
        return parts[0]
    hints = {error.hint for error in parts}
    shown = [_worded(error, alone=len(hints) == 1) for error in parts[:MOST]]
    shown += [f"… and {len(parts) - MOST} more"] if len(parts) > MOST else []
    worst = max(parts, key=lambda error: error.exit_code)
    # what no constructor of its own stands in the way of
    kind = next(
        kind
        for kind in type(worst).__mro__
        if issubclass(kind, PhipipeError) and kind.__init__ is PhipipeError.__init__
    )
    whole = kind(
        "\n".join(shown),
        hint=hints.pop() if len(hints) == 1 else None,
        problems=[problem for error in parts for problem in error.problems],
    )
    whole.parts = tuple(parts)
    return whole


def _worded(error: PhipipeError, alone: bool) -> str:
    return error.message if alone or not error.hint else f"{error.message}\n  try: {error.hint}"
