"""The eyes of Phi-4-multimodal for several pictures at once.

There are no loops over pictures and no branches on their sizes, so that one traced graph serves all
of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from phipipe.vision.siglip import CROP, SIDE, Tower, positions

_VECTORS = SIDE * SIDE  # of a crop


class Batch(nn.Module):  # type: ignore[misc]
    """``pixel_values`` float32 [n, 1 + crops, 3, 448, 448], ``image_attention_mask`` float32 [n, 1
    + crops, 32, 32]: 1 for patches that are picture, and ``image_sizes`` int64 [n, 2] to [vectors,
    hidden].

    Of every picture the first crop is the whole; the others follow row by row, padded with any to a
    common number. ``image_sizes`` has height and width of the crops in pixels, multiples of 448.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(
        self, pixel_values: Tensor, image_attention_mask: Tensor, image_sizes: Tensor
    ) -> Tensor:
        count, crops = pixel_values.shape[:2]
        masks = image_attention_mask > 0.5
        flat = masks.flatten(0, 1)
        features = self.tower.siglip(pixel_values.flatten(0, 1), flat, positions(flat))
        rows = torch.cat(
            [features.flatten(0, 1), self.tower.row_end[None], self.tower.between[None]]
        )
        order, kept = self._order(masks[:, :, ::2, ::2], image_sizes, count, crops)
        projected: Tensor = self.tower.img_projection(rows[order[kept]][None])[0]
        return projected

    @staticmethod
    def _order(
        useful: Tensor, image_sizes: Tensor, count: int, crops: int
    ) -> tuple[Tensor, Tensor]:
        """Which vectors stand one after another, int64 [n, most], and which of these are there.

        ``useful`` bool [n, 1 + crops, 16, 16]: vectors that are picture.
        """
        end = count * crops * _VECTORS  # the vector that ends a row, and after it the one between
        first = torch.arange(count)[:, None, None] * (crops * _VECTORS)
        high, wide = (image_sizes[:, i] // CROP for i in (0, 1))
        steps = torch.arange((crops - 1) * SIDE)
        # down the first column of crops, and along the first row of them
        down = _along(useful[:, :, :, 0], steps, wide, high)
        across = _along(useful[:, :, 0], steps, torch.ones_like(wide), wide)
        length = across.sum(1)[:, None, None]
        row, column = steps[None, :, None], torch.arange((crops - 1) * SIDE + 1)[None, None, :]
        crop = 1 + row // SIDE * wide[:, None, None] + column // SIDE
        places = first + crop * _VECTORS + row % SIDE * SIDE + column % SIDE
        parts = torch.where(column == length, end, places).flatten(1)
        used = (down[:, :, None] & (column <= length)).flatten(1)
        row, column = torch.arange(SIDE)[None, :, None], torch.arange(SIDE + 1)[None, None, :]
        whole = torch.where(column == SIDE, end, first + row * SIDE + column).flatten(1)
        middle = torch.zeros_like(whole[:, :1]) + end + 1
        always = torch.ones_like(torch.cat([middle, whole], 1), dtype=torch.bool)
        return torch.cat([parts, middle, whole], 1), torch.cat([used, always], 1)


def _along(useful: Tensor, steps: Tensor, stride: Tensor, limit: Tensor) -> Tensor:
    """Which of ``steps`` along one side of a picture's crops are picture, bool [n, steps].

    ``useful`` bool [n, 1 + crops, 16], ``stride`` [n]: from a crop to the next on that side,
    ``limit`` [n]: how many crops that side has.
    """
    crop = 1 + steps[None] // SIDE * stride[:, None]
    index = torch.clamp(crop, max=useful.shape[1] - 1) * SIDE + steps[None] % SIDE
    there = torch.gather(useful.flatten(1).long(), 1, index) > 0
    return there & (steps[None] < limit[:, None] * SIDE)
