"""A model whose layers compute no numbers, for drivers in the torch toolchain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from phipipe.models.layerwise import Layerwise
from testing.drive import message


def said_of_nan(call: Callable[[], object]) -> list[str]:
    """[class, message, hint] of how ``call`` fails where NaN leaves layer 1 of every model."""
    through = Layerwise.through

    def breaks(self: Any, i: int, *given: Any) -> torch.Tensor:
        hidden: torch.Tensor = through(self, i, *given)
        return hidden * float("nan") if i == 1 else hidden

    Layerwise.through = breaks  # type: ignore[method-assign]
    try:
        return message(call)
    finally:
        Layerwise.through = through  # type: ignore[method-assign]
