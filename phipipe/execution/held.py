"""Why a step did not start earlier, as its events tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from phipipe.steps import Json

# A result that it reads or follows; room for its memory; a place among the steps that run at once;
# the machine for itself, or a measurement's end; the installation of its toolchain.
Cause = Literal["result", "memory", "slot", "alone", "toolchain"]


@dataclass(frozen=True, kw_only=True)
class Wait:
    """``seconds`` that a step waited, and whose end ended it: a ``step`` by its label, or the
    installation of a ``toolchain``."""

    cause: Cause
    seconds: float
    step: str | None = None
    toolchain: str | None = None

    def as_json(self) -> dict[str, Json]:
        """For ``step_started``."""
        return {
            "for": self.cause,
            "step": self.step,
            "toolchain": self.toolchain,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class Held:
    """Labels of all steps that one reads or follows, and its waits in their order."""

    needs: tuple[str, ...] = ()
    waits: tuple[Wait, ...] = ()


NOT_HELD = Held()
