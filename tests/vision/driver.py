"""Runs in a toolchain with torch: ``python driver.py FOLDER`` (what ``vision_checkpoints``
left) prints JSON.

``clip``: how far the tower's patches lie from transformers' CLIP, as a share of the largest value.
``order``: the same for the vectors of several pictures at once, laid out here by plain loops.
``prepared``: shapes and sizes of pictures; ``same`` is the largest difference of a picture that
fills its crops from its own pixels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phipipe.vision import clip as vision_tower
from phipipe.vision import pictures


def worst(found: Any, expected: Any) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def laid_out(tower: Any, pixels: Any, size: tuple[int, int]) -> Any:
    """A picture's vectors, row by row, as its description says; ``pixels`` [crops, 3, 336, 336]."""
    patches = tower.clip(pixels).reshape(len(pixels), 24, 24, -1)

    def joined(crop: int, row: int, column: int) -> Any:
        square = [patches[crop, 2 * row + i, 2 * column + j] for i in (0, 1) for j in (0, 1)]
        return torch.cat(square)

    high, wide = (side // 336 for side in size)
    rows = []
    for row in range(12 * high):
        for column in range(12 * wide):
            crop = 1 + (row // 12) * wide + column // 12
            rows.append(joined(crop, row % 12, column % 12))
        rows.append(tower.row_end)
    rows.append(tower.between)
    for row in range(12):
        rows += [joined(0, row, column) for column in range(12)] + [tower.row_end]
    return tower.img_projection(torch.stack(rows))


def main(root: Path) -> None:
    tower = vision_tower.load(root / "source")
    with np.load(root / "clip.npz") as known, torch.inference_mode():
        clip = worst(
            tower.clip(torch.from_numpy(known["crops"])), torch.from_numpy(known["patches"])
        )
        sizes = [(336, 672), (672, 336), (336, 336), (672, 672)]
        pixels = torch.randn(len(sizes), 5, 3, 336, 336, generator=torch.Generator().manual_seed(2))
        expected = torch.cat([laid_out(tower, *pair) for pair in zip(pixels, sizes, strict=True)])
        order = worst(tower(pixels, torch.tensor(sizes)), expected)
    prepared, square = {}, pictures.Picture(name="square", width=672, height=672)
    for picture in (*pictures.PICTURES, square):
        for crops in (4, 16):
            made, size = vision_tower.prepare(picture, crops)
            prepared[f"{picture.name} {crops}"] = [list(made.shape), list(size)]
    made, _ = vision_tower.prepare(square, 4)
    mean, deviation = (
        torch.tensor(v)[:, None, None] for v in (vision_tower.MEAN, vision_tower.DEVIATION)
    )
    seen = (made[4] * deviation + mean) * 255  # the crop at the bottom right
    raw = (
        torch.frombuffer(bytearray(square.pixels()), dtype=torch.uint8)
        .view(672, 672, 3)
        .permute(2, 0, 1)
    )
    same = float((seen - raw[:, 336:, 336:].float()).abs().max())
    print(json.dumps({"clip": clip, "order": order, "prepared": prepared, "same": same}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
