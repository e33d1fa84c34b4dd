"""Pictures for Phi-4-multimodal as openvino-genai 2026.4 prepares them (visual_language/phi4mm).

It resizes in floats with OpenVINO's own interpolation, which is therefore used here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import openvino
from openvino import opset13

from phipipe.backends.arrays import Array
from phipipe.steps import Json
from phipipe.vision import pictures

Floats = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]
Tower = Callable[[Sequence[Array]], Sequence[Floats]]  # inputs → outputs
Pixels = TypeVar("Pixels", np.float32, np.bool_)

CROP, PATCH = 448, 14  # pixels
PATCHES, SIDE = 32, 16  # patches, and vectors, along a side of a crop


def seen(
    image: npt.NDArray[np.uint8],
    settings: Mapping[str, Json],
    tower: Tower,
    row_end: Floats,
    between: Floats,
) -> Floats:
    """What the projection is given for ``image`` [height, width, 3], float32 [vectors, width]."""
    crops, masks, (high, wide) = prepare(image, settings)
    vectors = tower([crops, masks, positions(masks)])[0]
    parts = _joined(vectors[1:].reshape(high, wide, SIDE, SIDE, -1))
    useful = _joined(masks[1:, ::2, ::2].reshape(high, wide, SIDE, SIDE, 1))[..., 0]
    parts = parts[: useful[:, 0].sum(), : useful[0].sum()]

    def rows(sheet: Floats) -> Floats:
        ends = np.broadcast_to(row_end, (sheet.shape[0], 1, len(row_end)))
        return np.concatenate([sheet, ends], 1).reshape(-1, len(row_end))

    return np.concatenate([rows(parts), between[None], rows(vectors[0].reshape(SIDE, SIDE, -1))])


def _joined(crops: npt.NDArray[Pixels]) -> npt.NDArray[Pixels]:
    """[high, wide, side, side, n] as one sheet [high · side, wide · side, n]."""
    high, wide, side, _, last = crops.shape
    return crops.transpose(0, 2, 1, 3, 4).reshape(high * side, wide * side, last)


def prepare(
    image: npt.NDArray[np.uint8], settings: Mapping[str, Json]
) -> tuple[Floats, Masks, tuple[int, int]]:
    """Crops float32 [1 + h · w, 3, 448, 448], which of their patches are picture, and (h, w).

    ``settings``: ``preprocessor_config.json``.
    """
    high, wide = pictures.grid(image.shape[1], image.shape[0], settings["dynamic_hd"], CROP)
    size = _scaled(image.shape[0], image.shape[1], high, wide)
    below, right = high * CROP - size[0], wide * CROP - size[1]
    floats = (image.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None]
    resized = _resized(floats, size, "bilinear_pillow")
    padded = np.pad(resized, ((0, 0), (0, 0), (0, below), (0, right)), constant_values=1)
    padded = (padded - np.float32(0.5)) / np.float32(0.5)
    whole = _resized(padded, (CROP, CROP), "cubic")
    mask = np.ones((high * PATCHES, wide * PATCHES), np.bool_)
    mask[mask.shape[0] - below // PATCH :] = False
    mask[:, mask.shape[1] - right // PATCH :] = False
    crops = padded.reshape(3, high, CROP, wide, CROP).transpose(1, 3, 0, 2, 4)
    parts = mask.reshape(high, PATCHES, wide, PATCHES).transpose(0, 2, 1, 3)
    masks = parts.reshape(-1, PATCHES, PATCHES)
    return (
        np.concatenate([whole, crops.reshape(-1, 3, CROP, CROP)]),
        np.concatenate([np.ones_like(masks[:1]), masks]),
        (high, wide),
    )


def _scaled(height: int, width: int, high: int, wide: int) -> tuple[int, int]:
    """Height and width of a picture that fills ``high`` by ``wide`` crops in one direction; the
    pipeline's arithmetic is in 32 bits."""
    across = np.float32(wide * CROP) / np.float32(width)
    down = np.float32(high * CROP) / np.float32(height)
    if across < down:
        return int(np.float32(height) * across), wide * CROP
    return high * CROP, int(np.float32(width) * down)


def _resized(image: Floats, size: tuple[int, int], mode: str) -> Floats:
    """``image`` [1, 3, height, width] at ``size``, by OpenVINO's ``Interpolate``."""
    taken = opset13.parameter(list(image.shape), openvino.Type.f32)
    resized = opset13.interpolate(
        taken,
        list(size),
        mode,
        "sizes",
        axes=[2, 3],
        coordinate_transformation_mode="pytorch_half_pixel",
        nearest_mode="floor",
        cube_coeff=-0.75,
    )
    compiled = openvino.Core().compile_model(openvino.Model([resized], [taken], "resize"), "CPU")
    output: Floats = compiled([image])[0]
    return output.copy()


def positions(masks: Masks) -> npt.NDArray[np.int64]:
    """Which learned positions patches take, [n, 1024]; see ``phipipe.vision.siglip.positions``."""
    steps = np.arange(PATCHES)[None]
    high, wide = masks[:, :, 0].sum(1)[:, None], masks[:, 0].sum(1)[:, None]
    rows, columns = (
        np.minimum(steps * PATCHES // np.maximum(count, 1), PATCHES - 1) for count in (high, wide)
    )
    places: npt.NDArray[np.int64] = (
        (rows[:, :, None] * PATCHES + columns[:, None]) * masks
    ).reshape(len(masks), -1)
    return places
