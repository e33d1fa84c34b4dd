"""The model that everything is compared with: in PyTorch, fp32, one layer in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from phipipe import backends
from phipipe.backends.base import Runtime

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


class Original(Protocol):
    """A model with one layer in memory at a time, or with all of them."""

    def logits(self, windows: Sequence[Sequence[int]]) -> Iterator[Floats]: ...

    def generate(self, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]: ...


class Whole:
    """A model that is loaded as a whole."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def logits(self, windows: Sequence[Sequence[int]]) -> Iterator[Floats]:
        return (self._runtime.logits(window) for window in windows)

    def generate(self, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
        return [list(self._runtime.generate(prompt, limit)) for prompt in prompts]


class Layered:
    """A model of which one layer at a time is in memory."""

    def __init__(self, source: Path) -> None:
        from phipipe.models import greedy, layerwise  # torch, which no test of ours needs

        self._model, self._answer = layerwise.Layerwise(source), greedy.answer

    def logits(self, windows: Sequence[Sequence[int]]) -> Iterator[Floats]:
        return self._model.logits(windows)

    def generate(self, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
        return self._answer(self._model, prompts, limit)


def load(source: Path) -> Original:
    """The checkpoint in ``source``; only one that comes quantized is loaded as a whole."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    if "quantization_config" in config:
        return Whole(backends.load("torch").open(source))
    return Layered(source)
