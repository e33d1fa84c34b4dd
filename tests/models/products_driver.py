"""Runs in the torch toolchain: ``python products_driver.py ROOT``.

Made-up products of all kinds of shapes, beside those in fp64; ``facts.json`` says how far off they
are, of the largest number in them.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from testing.drive import answer
from torch.nn import functional

from phipipe.models import products

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def made(chance: random.Random) -> Tensors:
    """What is multiplied: rows of one to three axes, some of them every other one of a larger
    tensor; a weight that is turned, or is not; an offset or none."""
    columns, across = chance.randint(1, 300), chance.randint(1, 300)
    shape = [chance.randint(1, 9) for _ in range(chance.randint(0, 2))]
    if chance.random() < 0.2:
        shape.append(0)
    rows = torch.randn(*shape, columns)
    if shape and chance.random() < 0.3:
        rows = torch.randn(2 * shape[0], *shape[1:], columns)[::2]
    kind = chance.random()
    weight = torch.randn(columns, across).T if kind < 0.3 else torch.randn(across, columns)
    if kind > 0.7:
        weight = torch.randn(across, columns + 9)[:, 4:-5]
    return rows, weight, torch.randn(across) if chance.random() < 0.5 else None


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    if not wanted.numel():
        return 0.0
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1))


def plain(given: Tensors) -> float:
    """With no gradients."""
    with torch.inference_mode(), products.Quick():
        found = functional.linear(*given)
    return off(found, _exact(given))


def pairs(given: Tensors) -> float:
    """The same of two matrices as they stand."""
    left, right = given[0].reshape(-1, given[0].shape[-1]), given[1].T
    with torch.inference_mode():
        found = products.product(left, right)
    return off(found, left.double() @ right.double())


def _exact(given: Tensors) -> torch.Tensor:
    return functional.linear(*(one if one is None else one.double() for one in given))


def gradients(given: Tensors) -> float:
    """Of all that is multiplied or added."""
    leaves = [one.detach().clone().requires_grad_() for one in given if one is not None]
    wide = [one.detach().double().requires_grad_() for one in leaves]
    with products.Quick():
        found = functional.linear(*leaves)
    wanted = functional.linear(*wide)
    above = torch.randn(wanted.shape)
    both = zip(
        torch.autograd.grad(found, leaves, above),
        torch.autograd.grad(wanted, wide, above.double()),
        strict=True,
    )
    return max(off(*pair) for pair in both)


def worst() -> dict[str, float]:
    chance, found = random.Random(7), dict.fromkeys(("plain", "pairs", "gradients"), 0.0)
    torch.manual_seed(7)
    for _ in range(150):
        given = made(chance)
        for check in (plain, pairs, gradients):
            found[check.__name__] = max(found[check.__name__], check(given))
    return found


if __name__ == "__main__":
    answer(Path(sys.argv[1]) / "facts.json", {"worst": worst})
