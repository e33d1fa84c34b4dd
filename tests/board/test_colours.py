"""Colours that all eyes tell apart, light and dark, and a legend that fits a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import pytest
from testing.boards import entry

from phipipe import backends
from phipipe.board import colours

# Linear RGB as people see it who lack one kind of cone (Machado, Oliveira and Fernandes 2009,
# severity 1).
SIGHT = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.1523, 1.0526, -0.2049), (0.1145, 0.7863, 0.0992), (-0.0039, -0.0481, 1.0520)),
    "deutan": ((0.3673, 0.8606, -0.2280), (0.2801, 0.6725, 0.0474), (-0.0118, 0.0429, 0.9689)),
    "tritan": ((1.2555, -0.0767, -0.1788), (-0.0784, 0.9308, 0.1476), (0.0047, 0.6914, 0.3039)),
}
# Linear RGB → cones, and their cube roots → lightness and two colour axes: OKLab, in which
# distances are even.
CONES = ((0.4122, 0.5363, 0.0514), (0.2119, 0.6807, 0.1074), (0.0883, 0.2817, 0.6300))
OKLAB = ((0.2105, 0.7936, -0.0041), (1.9780, -2.4286, 0.4506), (0.0259, 0.7828, -0.8087))
Vector = tuple[float, ...]


def times(matrix: Sequence[Vector], vector: Vector) -> Vector:
    return tuple(sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix)


def linear(colour: str) -> Vector:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)


def seen(colour: str, sight: str) -> Vector:
    shown = tuple(min(max(c, 0.0), 1.0) for c in times(SIGHT[sight], linear(colour)))
    return times(OKLAB, tuple(cone ** (1 / 3) for cone in times(CONES, shown)))


@pytest.mark.parametrize("pages", [("#ffffff", 0), ("#0d1117", 1)])
def test_plot_colours_stand_out_from_the_page(pages: tuple[str, int]) -> None:
    def light(colour: str) -> float:
        return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))

    for pair in colours.SERIES.items():
        low, high = sorted((light(pages[0]), light(pair[pages[1]])))
        assert (high + 0.05) / (low + 0.05) >= 3, pair


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", [0, 1])
def test_every_backend_has_a_colour_of_its_own_for_all_eyes(theme: int, sight: str) -> None:
    assert all(backends.load(name).colour is not None for name in backends.names())
    assert len({colours.of_backend(name) for name in (*backends.names(), "another")}) == 8
    for one, other in combinations(
        colours.SERIES.items(), 2
    ):  # 0.02 is what can just be told apart
        assert math.dist(seen(one[theme], sight), seen(other[theme], sight)) > 0.08, (one, other)


def test_a_legend_names_each_runtime_of_the_page() -> None:
    places = colours.families([entry(backend=name) for name in ("torch", "mlx", "torch", "odd")])
    assert [name for _, name in colours.legend(places)] == ["mlx", "torch", "odd"]


@pytest.mark.parametrize("strangers", [0, 1, 4])
def test_a_legend_of_many_runtimes_has_six_entries(strangers: int) -> None:
    names = [*backends.names(), *(f"odd{i}" for i in range(strangers))]
    few, *many = names
    places = colours.families([entry(backend=name) for name in (few, *many, *many)])
    shown = colours.legend(places)
    assert len(shown) == colours.MOST_FAMILIES
    assert shown[-1] == (colours.OTHER, "other runtimes")
    assert places[few] == colours.OTHER  # it has the fewest builds
    assert set(places) == set(names)
