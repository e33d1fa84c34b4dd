"""How a runtime picks the next token: the likeliest, or as whoever asks says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Choose = Callable[["npt.NDArray[np.float32]"], int]
"""Picks the next token: logits float32 [vocabulary] of the last position → an id."""


def picked(logits: npt.NDArray[np.float32], choose: Choose | None) -> int:
    """The next token by ``choose``, else the likeliest; ``logits`` float32 [vocabulary]."""
    return int(logits.argmax()) if choose is None else choose(logits)
