"""Checkpoints that exist as shapes only, for tests of rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from phipipe.models import checkpoints, family
from phipipe.models.checkpoint import Checkpoint

MINI = next(member.config for member in family.MEMBERS if member.name == "Phi-3-mini-4k")


def phi3(config: dict[str, Any] | None = None, **changes: Any) -> Checkpoint:
    """Phi-3-mini's shape without its sliding window; ``config`` is laid on its own, ``changes`` on
    the result."""
    return replace(
        checkpoints.of_config({**MINI, "sliding_window": None, **(config or {})}, "sentencepiece"),
        **changes,
    )
