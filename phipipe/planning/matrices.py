"""What the matrices of a map, or of learned weights, take in the artifact, kind by kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from phipipe import backends
from phipipe.backends.base import Job
from phipipe.models import linears
from phipipe.planning import learned

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """Matrices of one kind (``linears.kind_of``) that are stored alike: how many, and the bytes
    that they take together."""

    name: str
    width: str
    count: int
    size_bytes: int


def of(job: Job[BaseModel]) -> tuple[Matrices, ...]:
    """Those whose width ``job`` says, in the order of the model; none where it has no map and
    learns nothing.

    The sizes are those that the backend's own estimate of the artifact counts for them
    (``Backend.weight_bits``), so what is left of it is everything else: norms, and matrices that
    the map does not name.
    """
    weight_bits = backends.load(job.recipe.backend).weight_bits
    if weight_bits is None or not job.widths or job.recipe.precision.startswith("fp"):
        return ()
    job = learned.smoothed(job)
    bits: dict[tuple[str, str], list[float]] = {}
    for name, (rows, columns) in linears.shapes(job.checkpoint).items():
        if stored := job.widths.get(name):
            found = bits.setdefault((linears.kind_of(name), str(stored)), [])
            found.append(rows * columns * weight_bits(job, name, stored, columns))
    return tuple(
        Matrices(name=name, width=width, count=len(each), size_bytes=round(sum(each) / 8))
        for (name, width), each in _by_kind(bits)
    )


def _by_kind(bits: Mapping[tuple[str, str], T]) -> list[tuple[tuple[str, str], T]]:
    """Those of one kind together, kinds in the order in which they come."""
    kinds = list(dict.fromkeys(name for name, _ in bits))
    return sorted(bits.items(), key=lambda one: kinds.index(one[0][0]))
