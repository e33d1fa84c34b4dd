"""How wide each matrix of a model is stored: the recipe's `quantize.map`, with one meaning on all
backends.

Patterns stand over the names of ``models.linears``; the first that matches decides. What no
pattern matches is stored as the other options say.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from phipipe.errors import StepFailed
from phipipe.models import linears
from phipipe.steps import Json
from phipipe.suggestions import near, shorten

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

FLOAT_BITS = 16
TUNED_GROUPS = (-1, 32, 64, 128)  # others are slow on most units, or hardly smaller


class Width(BaseModel):
    """Integers of so many ``bits`` with one scale for each ``group_size`` of them (-1: a row, None:
    as the other options say), or floats as the unquantized model has them, at 16 bits."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    bits: Literal[2, 3, 4, 5, 6, 8, 16] = Field(description="Bits of a weight; 16: floats.")
    group_size: Literal[-1, 16, 32, 64, 128, 256] | None = Field(
        default=None,
        description="Weights that share one scale; -1: a row. Without it as the other options say.",
    )

    def __str__(self) -> str:
        groups = {None: "", -1: " by row"}.get(self.group_size, f" in groups of {self.group_size}")
        return "floats" if self.bits == FLOAT_BITS else f"{self.bits} bits{groups}"


Stored = Width | str
"""A width, or a runtime's own name of a type."""


def _plain(value: Json) -> Json:
    if not isinstance(value, dict | str | Width):
        raise ValueError("give `{bits: 8, group_size: 32}`, or a type of the runtime's own")
    return value if isinstance(value, str | Width) else Width.model_validate(value)


PrecisionMap = dict[str, Annotated[Stored, BeforeValidator(_plain)]]


class Mapped(BaseModel):
    """Options of a backend that stores each matrix in a width of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    map: PrecisionMap = Field(
        default={},
        description="Pattern over the names of matrices (`layers.*.mlp.down_proj`, `lm_head`, "
        "`embed_tokens`) → `{bits, group_size}` or a type of the runtime's own. The first pattern "
        "that matches decides.",
    )


@dataclass(frozen=True, kw_only=True)
class Stores:
    """What a runtime stores: by bits, the group sizes (the usual one first); its own ``types`` with
    their bits for a weight; the bits of a group beside its integers; ``blocks``: the weights in a
    type's block, where rows must end with one; ``fixed``: matrices whose width is not for the map
    to choose; ``learned``: it stores weights of ``algorithms.lattice``, ``positive``: those with
    scales above 0 alone; ``floats``: a matrix may stay in floats; ``tuned``: the types that `tune`
    chooses from, without them all widths; ``presets``: options that a map of all matrices takes the
    place of."""

    groups: Mapping[int, Sequence[int]]
    group_bits: int
    types: Mapping[str, float] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    learned: bool = False
    positive: bool = False
    floats: bool = True
    tuned: Sequence[str] = ()
    presets: frozenset[str] = frozenset()

    def learned_group(self, bits: int, size: int) -> int:
        """Weights that share a scale where ``bits`` are learned in groups of ``size``: a row (-1)
        where nothing smaller is stored."""
        return -1 if tuple(self.groups.get(bits, ())) == (-1,) else size

    def choices(self) -> list[Stored]:
        """All that `tune` may choose for a matrix."""
        every: list[Stored] = [
            Width.model_validate({"bits": bits, "group_size": size})
            for bits, sizes in self.groups.items()
            for size in sizes
            if size in TUNED_GROUPS
        ]
        return list(self.tuned) or every

    def bits_per_weight(self, stored: Stored, columns: int) -> float:
        """The bits that a weight takes, its share of the group's scale with it; ``columns``: of its
        row."""
        if isinstance(stored, str):
            return self.types[stored]
        if stored.bits == FLOAT_BITS:
            return FLOAT_BITS
        size = stored.group_size or self.groups[stored.bits][0]
        return stored.bits + self.group_bits / (columns if size < 0 else size)

    def wrong(self, name: str, stored: Stored, columns: int) -> str | None:
        """Why the matrix ``name`` cannot be stored so, with what can; None where it can."""
        if name in self.fixed:
            return f"no choice of widths for `{name}`"
        if isinstance(stored, str):
            return self._wrong_type(name, stored, columns)
        if stored.bits == FLOAT_BITS and self.floats:
            return None
        sizes = self.groups.get(stored.bits)
        if sizes is None:
            *able, last = *self.groups, *([FLOAT_BITS] if self.floats else [])
            return f"no {stored.bits} bits, but {_list(able)} and {last}"
        size = stored.group_size or sizes[0]
        if size not in sizes:
            rows = " (a row)" if -1 in sizes else ""
            return f"no groups of {size} at {stored.bits} bits, but {_list(sizes)}{rows}"
        if size > 0 and columns % size:
            return f"no groups of {size} in `{name}`, whose rows have {columns} weights"
        return None

    def _wrong_type(self, name: str, stored: str, columns: int) -> str | None:
        if stored not in self.types:
            types = ", ".join(f"`{one}`" for one in self.types)
            words = f", but {types}" if types else " or any of its own: give `{bits: …}`"
            return f"no type `{shorten(stored)}`{words}"
        if columns % (block := self.blocks.get(stored, 1)):
            return f"no blocks of {block} in `{name}`, whose rows have {columns} weights"
        return None


def to_params(widths: Mapping[str, Stored]) -> dict[str, Json]:
    """``widths`` as a parameter of a step."""
    return {
        name: stored if isinstance(stored, str) else stored.model_dump(mode="json")
        for name, stored in widths.items()
    }


def from_params(params: Mapping[str, Json]) -> dict[str, Stored]:
    """What ``to_params`` wrote."""
    return {name: _plain(stored) for name, stored in params.items()}


def of(name: str, widths: Mapping[str, Stored]) -> Stored | None:
    """How the matrix that a runtime calls ``name`` is stored, though the checkpoint may hold it
    within a joined one, or in several; None: as the other options say.

    Raises:
        StepFailed: several that are one here are to be stored in different ways.
    """
    for one in (name, linears.joined(name) or name):
        if one in widths:
            return widths[one]
    prefix, _, last = name.rpartition(".")
    parts = {widths.get(f"{prefix}.{part}") for part in linears.JOINED.get(last, ())}
    if len(parts) > 1:
        raise StepFailed(f"`{name}` is one matrix here, and the map has several widths for it")
    return parts.pop() if parts else None


def _list(numbers: Sequence[int] | Mapping[int, object]) -> str:
    return ", ".join(str(number) for number in numbers)


def widens_layers(chosen: Mapping[str, Stored]) -> bool:
    """Whether the map ``chosen`` gives matrices of the layers more than 4 bits."""
    ends = (linears.EMBEDDING, linears.HEAD)
    wide = (name for name, one in chosen.items() if isinstance(one, Width) and one.bits > 4)
    return any(name not in ends for name in wide)


class BadPattern(ValueError):
    """A ``pattern`` of a map that does not fit the model."""

    def __init__(self, pattern: str, message: str) -> None:
        super().__init__(message)
        self.pattern = pattern


def resolve(chosen: Mapping[str, Stored], checkpoint: Checkpoint) -> dict[str, Stored]:
    """Matrix → how the map ``chosen`` has it stored; those it does not name are absent.

    Raises:
        BadPattern: it matches nothing, or those before it match all that it does.
    """
    names = linears.shapes(checkpoint)
    found: dict[str, Stored] = {}
    for pattern, stored in chosen.items():
        matching = [name for name in names if _matches(name, pattern, checkpoint.tied)]
        if not matching:
            kinds = sorted(set(map(linears.kind_of, names)))
            hint = near(pattern, kinds) or f"; there are {', '.join(f'`{kind}`' for kind in kinds)}"
            raise BadPattern(pattern, f"`{shorten(pattern)}` matches no matrix of this model{hint}")
        new = [name for name in matching if name not in found]
        if not new and any(found[name] != stored for name in matching):
            raise BadPattern(
                pattern,
                f"`{shorten(pattern)}` decides nothing: patterns before it match all that it does, "
                "and the first that matches decides",
            )
        found |= dict.fromkeys(new, stored)
    return found


def fitting(chosen: Mapping[str, Stored], checkpoint: Checkpoint) -> dict[str, Stored]:
    """As ``resolve``, for rules: nothing where the map does not fit, which the plan says."""
    try:
        return resolve(chosen, checkpoint)
    except BadPattern:
        return {}


def _matches(name: str, pattern: str, tied: bool) -> bool:
    """A pattern may use the name that other checkpoints join this matrix under, and a tied head is
    the embedding."""
    names = {name, linears.joined(name) or name}
    if tied and name == linears.EMBEDDING:
        names.add(linears.HEAD)
    return any(fnmatch.fnmatchcase(one, pattern) for one in names)
