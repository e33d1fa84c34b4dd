"""A checkpoint's matrices, read by rows: light, for toolchains without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from phipipe.errors import StepFailed
from phipipe.models import linears, tensor_places
from phipipe.models.tensor_places import Place

Rows = npt.NDArray[np.intp]
_KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Stored:
    """A matrix as the checkpoint in ``folder`` holds it at ``place``."""

    def __init__(self, folder: Path, place: Place) -> None:
        kind = np.dtype(_KINDS[place.dtype])
        self._values = np.memmap(folder / place.file, kind, "r", place.offset, place.shape)
        self._wide = place.dtype == "BF16"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self._values.shape
        return rows, columns

    def rows(self, chosen: Rows) -> npt.NDArray[np.float32]:
        """The ``chosen`` rows, float32 [len(chosen), columns]."""
        values = np.asarray(self._values[chosen])
        if self._wide:  # the upper half of float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


def of(folder: Path) -> dict[str, Stored]:
    """Name (``linears``) → matrix, of the checkpoint in ``folder``.

    Raises:
        StepFailed: one has a dtype that is no float.
    """
    named = {linears.linear_of(name): place for name, place in tensor_places.places(folder).items()}
    for name, place in named.items():
        if name and place.dtype not in _KINDS:
            raise StepFailed(f"`{name}` is stored as {place.dtype}, which is not read here")
    return {name: Stored(folder, place) for name, place in named.items() if name}
