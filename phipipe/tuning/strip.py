"""The chosen widths as a strip: a row for each kind of matrix, a column for each layer, darker
where a weight takes more bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from phipipe import backends
from phipipe.backends.widths import Stored
from phipipe.models import linears
from phipipe.package import figures
from phipipe.tuning.curve import Choice
from phipipe.tuning.results import Tuned

# From few bits to many. Each stands out from the next by 1.8 to 1, so that paper and all eyes see
# the order.
RAMP = ("#e6eff8", "#8fb5dc", "#5286b9", "#2a5b8d", "#0a2f5c")
LIGHT, DARK = "#ffffff", "#000000"  # of the figures in cells
MOST_LABELS = 9  # of layers: more of them touch each other on a phone
STRIDES = (1, 2, 4, 5, 10, 20, 50, 100, 1000)
ENDS = {linears.EMBEDDING: "embedding", linears.HEAD: "head"}


@dataclass(frozen=True, kw_only=True)
class Shade:
    """The ground of a cell, and the figure on it, as CSS colours."""

    ground: str
    ink: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A group of matrices: its place in the page's shades, bits for a weight, and its width in
    words."""

    shade: int
    bits: str
    told: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of matrix, layer by layer; None where nothing is chosen. ``mean``: bits for a
    weight."""

    name: str
    cells: Sequence[Cell | None]
    mean: str


@dataclass(frozen=True, kw_only=True)
class Strip:
    """All that was chosen; ``ends``: what lies outside of the layers, by name; ``legend``: each
    width once, the smallest first; ``stride``: of this many layers one has its number shown."""

    rows: Sequence[Row]
    ends: Mapping[str, Cell]
    legend: Sequence[Cell]
    layers: int
    stride: int


def scale(tuned: Sequence[Tuned]) -> list[float]:
    """The bits for a weight that occur on a page, the fewest first: each has a shade."""
    return sorted({bits for one in tuned for bits in _bits(one).values()})


def shades(count: int) -> list[Shade]:
    """So many shades, evenly along the ramp."""
    return [_shade(i / max(count - 1, 1)) for i in range(count)]


def strip(tuned: Tuned, scale: Sequence[float]) -> Strip | None:
    """What was chosen for each group; None where the recipe as it stands is the best."""
    choice = tuned.best.choice
    if choice is None:
        return None
    bits = _bits(tuned)
    cells = {
        name: Cell(
            shade=scale.index(bits[name]),
            bits=figures.number(bits[name]),
            told=str(option.stored),
        )
        for name, option in choice.items()
    }
    layers = 1 + max((linears.layer_of(name) or 0 for name in choice), default=0)
    return Strip(
        rows=list(_rows(choice, cells, bits, layers)),
        ends={words: cells[name] for name, words in ENDS.items() if name in cells},
        legend=_legend(cells),
        layers=layers,
        stride=next(one for one in STRIDES if layers <= one * MOST_LABELS),
    )


def _bits(tuned: Tuned) -> dict[str, float]:
    """Group → bits for a weight of the best file."""
    plan = tuned.final.plan
    stores = backends.load(plan.build.recipe.backend).stores
    if stores is None or tuned.best.choice is None:
        return {}
    shapes = linears.shapes(plan.whole)
    columns = {linears.joined(name) or name: shape[1] for name, shape in shapes.items()}

    def of(name: str, stored: Stored) -> float:
        return round(stores.bits_per_weight(stored, columns[name]), 2)

    return {name: of(name, option.stored) for name, option in tuned.best.choice.items()}


def _rows(
    choice: Choice, cells: Mapping[str, Cell], bits: Mapping[str, float], layers: int
) -> Iterator[Row]:
    kinds = dict.fromkeys(linears.kind_of(name) for name in choice if name not in ENDS)
    for kind in kinds:
        names = [kind.replace("*", str(layer), 1) for layer in range(layers)]
        yield Row(
            name=kind.rpartition(".")[2].removesuffix("_proj"),
            cells=[cells.get(name) for name in names],
            mean=figures.number(fmean(bits[name] for name in names if name in bits)),
        )


def _legend(cells: Mapping[str, Cell]) -> list[Cell]:
    return sorted(set(cells.values()), key=lambda cell: (cell.shade, cell.told))


def _shade(at: float) -> Shade:
    """The colour ``at`` this part of the ramp, from 0 to 1."""
    place = at * (len(RAMP) - 1)
    before = min(int(place), len(RAMP) - 2)
    left, right, part = RAMP[before], RAMP[before + 1], place - before
    mixed = [
        round(a + part * (b - a)) for a, b in zip(_channels(left), _channels(right), strict=True)
    ]
    ground = "#" + "".join(f"{channel:02x}" for channel in mixed)
    # black and white stand out alike from a ground of luminance 0.179 (WCAG 2.2, contrast ratio)
    return Shade(ground=ground, ink=DARK if _luminance(mixed) > 0.179 else LIGHT)


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _luminance(channels: Sequence[int]) -> float:
    """Relative luminance by WCAG 2.2, from 0 to 1."""
    parts = [channel / 255 for channel in channels]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
