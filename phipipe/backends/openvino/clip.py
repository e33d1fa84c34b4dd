"""Pictures for Phi-3-vision as openvino-genai 2026.4 prepares them (visual_language/phi3_vision).

Of those that are not square it takes height for width (``Backend.square``); nothing does so
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from phipipe.steps import Json

Floats = npt.NDArray[np.float32]
Tower = Callable[[Sequence[Floats]], Sequence[Floats]]  # a graph: its inputs → its outputs

CROP, SIDE = 336, 12  # pixels, and vectors, along a side of a crop
CUBIC = -0.5  # coefficient of the pipeline's bicubic interpolation


def seen(
    image: npt.NDArray[np.uint8],
    settings: Mapping[str, Json],
    tower: Tower,
    row_end: Floats,
    between: Floats,
) -> Floats:
    """What the projection is given for ``image`` [height, width, 3], float32 [vectors, 4 ·
    width]."""
    crops, (high, wide) = prepare(image, settings)
    return laid_out(tower([crops])[0], high, wide, row_end, between)


def prepare(
    image: npt.NDArray[np.uint8], settings: Mapping[str, Json]
) -> tuple[Floats, tuple[int, int]]:
    """An image as the pipeline crops it: float32 [1 + n, 3, 336, 336], and how many crops it is
    high and wide.

    ``settings``: ``preprocessor_config.json``.
    """
    turned = image.shape[1] < image.shape[0]
    source = image.transpose(1, 0, 2) if turned else image
    ratio = source.shape[1] / source.shape[0]
    scale = 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= settings["num_crops"]:
        scale += 1
    wide = scale * CROP
    resized = _linear(source, int(wide / ratio), wide)
    room = -resized.shape[0] % CROP
    around = ((room // 2, room - room // 2), (0, 0), (0, 0))
    resized = np.pad(resized, around, constant_values=255).astype(np.float32)
    resized = resized.transpose(1, 0, 2) if turned else resized
    across, down = _cubic(resized.shape[1]), _cubic(resized.shape[0])
    whole = np.einsum("ih,hwc,jw->ijc", down, resized, across, optimize=True)
    high, wide = resized.shape[0] // CROP, resized.shape[1] // CROP
    grid = (
        resized.reshape(high, CROP, wide, CROP, 3)
        .transpose(0, 2, 1, 3, 4)
        .reshape(-1, CROP, CROP, 3)
    )
    crops = np.concatenate([whole[None], grid]) / np.float32(255)
    crops = (crops - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    return np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32), (high, wide)


def _linear(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Bilinear, as the pipeline does it: corners are not quite aligned, and fractions are cut
    off."""
    resized = image.astype(np.float32)
    for axis, length in ((1, width), (0, height)):
        place = np.arange(length, dtype=np.float32) * (
            np.float32(image.shape[axis] - 1) / np.float32(length)
        )
        left = place.astype(np.int64)
        share = (place - left).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        low, high = np.take(resized, left, axis), np.take(resized, left + 1, axis)
        resized = low + (high - low) * share
    return resized.astype(np.uint8)


def _cubic(length: int) -> Floats:
    """Weights [336, length] of the bicubic interpolation of a row of ``length`` pixels to 336."""
    weights = np.zeros((CROP, length), np.float32)
    for i in range(CROP):
        place = i * length / CROP
        for tap in range(-1, 3):
            x = abs(place - math.floor(place) - tap)
            near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
            far = ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC
            weights[i, min(max(math.floor(place) + tap, 0), length - 1)] += near if x <= 1 else far
    return weights


def laid_out(patches: Floats, high: int, wide: int, row_end: Floats, between: Floats) -> Floats:
    """Patches of all crops [1 + n, 576, w] in the order of the rows they form, joined by fours:
    [vectors, 4 · w]."""
    count, _, width = patches.shape
    joined = patches.reshape(count, SIDE, 2, SIDE, 2, width).transpose(0, 1, 3, 2, 4, 5)
    joined = joined.reshape(count, SIDE, SIDE, 4 * width)
    grid = joined[1 : 1 + high * wide].reshape(high, wide, SIDE, SIDE, -1).transpose(0, 2, 1, 3, 4)

    def rows(sheet: Floats) -> Floats:
        ends = np.broadcast_to(row_end, (sheet.shape[0], 1, len(row_end)))
        return np.concatenate([sheet, ends], 1).reshape(-1, len(row_end))

    return np.concatenate(
        [rows(grid.reshape(high * SIDE, wide * SIDE, -1)), between[None], rows(joined[0])]
    )
