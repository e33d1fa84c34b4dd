"""What a backend module must offer, and the few types that cross its border."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

from phipipe.recipe import Precision, Recipe

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.models import Checkpoint

Json = Any
"""A JSON value: None, bool, int, float, str, list or dict of these."""

Inputs = Mapping[str, Path]
Params = Mapping[str, Json]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node of the plan: a function that reads ``inputs`` and writes into a folder.

    ``runs`` is ``module:function`` with the signature ``(inputs, out, params) -> None``. ``version`` is
    bumped by hand whenever the function's output changes. ``needs`` maps the function's input
    names to names of earlier steps. ``params`` holds everything else that decides the bytes.
    """

    name: str
    runs: str
    version: int
    needs: Mapping[str, str] = field(default_factory=dict)
    params: Params = field(default_factory=dict)
    toolchain: str | None = None  # None: light enough to run in the parent process
    per_host: bool = False  # measurements: the host belongs into the key
    output_bytes: int = 0  # estimate, for `plan` and the disk check
    memory_bytes: int = 0  # estimate of the peak, for `plan`


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Something a backend finds in a recipe: ``level`` is "error" or "warning"."""

    level: str
    rule: str
    message: str
    hint: str | None = None


class Runtime(Protocol):
    """An opened artifact; the seam that makes every number comparable."""

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of every position, float32 [len(tokens), vocabulary]; no state is kept between calls."""

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        """At most ``limit`` token ids, chosen greedily; ends after an end-of-text token (which it yields)."""

    def close(self) -> None:
        """Free the model. The object is not used afterwards."""


class Backend(Protocol):
    """The fixed set of names that ``phipipe/backends/<name>.py`` defines at module level."""

    TITLE: str
    TOOLCHAIN: str
    APIS: frozenset[str]  # device unit APIs it can serve (phipipe/devices/*.yaml)
    HOST_APIS: frozenset[str]  # of these, what can be run on the build machine for evaluation
    PRECISIONS: Mapping[str, Mapping[Precision, str]]  # per API: ours → its own scheme
    Options: type[BaseModel]  # the recipe's `quantize:` section

    @staticmethod
    def steps(recipe: Recipe, checkpoint: Checkpoint | None) -> list[Step]:
        """Steps from ``source`` to the artifact; the last one's output is what ships."""

    @staticmethod
    def open(artifact: Path) -> Runtime:
        """Load an artifact (called inside the backend's toolchain)."""
