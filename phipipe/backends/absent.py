"""The error for a machine that lacks what an artifact is to run on."""

from __future__ import annotations

from phipipe.errors import TargetError


def absent(unit: str, seen: str) -> TargetError:
    """The error for a machine without ``unit``; ``seen`` says who looked for it."""
    return TargetError(
        f"this machine has no {unit} that {seen} can use",
        hint="measure on the device itself; `phipipe eval PACKAGE` evaluates the file here, on "
        "the CPU",
    )
