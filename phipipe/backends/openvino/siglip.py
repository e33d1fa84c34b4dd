"""Pictures for Phi-4-multimodal as openvino-genai 2026.4 prepares them (visual_language/phi4mm).

It resizes in floats with OpenVINO's own interpolation, which is therefore used here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from phipipe.vision import pictures

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Masks = npt.NDArray[np.bool_]

CROP, PATCH = 448, 14  # pixels
PATCHES, SIDE = 32, 16  # patches, and vectors, along a side of a crop


def seen(
    image: npt.NDArray[np.uint8],
    settings: Mapping[str, Any],
    tower: Callable[..., Any],
    row_end: Floats,
    between: Floats,
) -> Floats:
    """What the projection is given for ``image`` [height, width, 3], float32 [vectors, width]."""
    import numpy as np

    crops, masks, (high, wide) = prepare(image, settings)
    found = tower([crops, masks, positions(masks)])[0]
    parts = _joined(found[1:].reshape(high, wide, SIDE, SIDE, -1))
    useful = _joined(masks[1:, ::2, ::2].reshape(high, wide, SIDE, SIDE, 1))[..., 0]
    parts = parts[: useful[:, 0].sum(), : useful[0].sum()]

    def rows(vectors: Floats) -> Floats:
        ends = np.broadcast_to(row_end, (vectors.shape[0], 1, len(row_end)))
        return np.concatenate([vectors, ends], 1).reshape(-1, len(row_end))

    return np.concatenate([rows(parts), between[None], rows(found[0].reshape(SIDE, SIDE, -1))])


def _joined(crops: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[high, wide, side, side, n] as one sheet [high · side, wide · side, n]."""
    high, wide, side, _, last = crops.shape
    return crops.transpose(0, 2, 1, 3, 4).reshape(high * side, wide * side, last)


def prepare(
    image: npt.NDArray[np.uint8], settings: Mapping[str, Any]
) -> tuple[Floats, Masks, tuple[int, int]]:
    """Crops float32 [1 + h · w, 3, 448, 448], which of their patches are picture, and (h, w).

    ``settings``: ``preprocessor_config.json``.
    """
    import numpy as np

    height, width = image.shape[:2]
    high, wide = pictures.grid(width, height, settings["dynamic_hd"], CROP)
    # the pipeline's arithmetic is in 32 bits
    scales = (
        np.float32(wide * CROP) / np.float32(width),
        np.float32(high * CROP) / np.float32(height),
    )
    if scales[0] < scales[1]:
        size = (int(np.float32(height) * scales[0]), wide * CROP)
    else:
        size = (high * CROP, int(np.float32(width) * scales[1]))
    below, right = high * CROP - size[0], wide * CROP - size[1]
    floats = (image.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None]
    resized = _resized(floats, size, "bilinear_pillow")
    padded = np.pad(resized, ((0, 0), (0, 0), (0, below), (0, right)), constant_values=1)
    padded = (padded - np.float32(0.5)) / np.float32(0.5)
    whole = _resized(padded, (CROP, CROP), "cubic")
    mask = np.ones((high * PATCHES, wide * PATCHES), np.bool_)
    mask[mask.shape[0] - below // PATCH :] = False
    mask[:, mask.shape[1] - right // PATCH :] = False
    crops = (
        padded.reshape(3, high, CROP, wide, CROP)
        .transpose(1, 3, 0, 2, 4)
        .reshape(-1, 3, CROP, CROP)
    )
    masks = (
        mask.reshape(high, PATCHES, wide, PATCHES)
        .transpose(0, 2, 1, 3)
        .reshape(-1, PATCHES, PATCHES)
    )
    return (
        np.concatenate([whole, crops]),
        np.concatenate([np.ones_like(masks[:1]), masks]),
        (high, wide),
    )


def _resized(image: Floats, size: tuple[int, int], mode: str) -> Floats:
    """``image`` [1, 3, height, width] at ``size``, by OpenVINO's ``Interpolate``."""
    import openvino
    from openvino import opset13

    taken = opset13.parameter(list(image.shape), openvino.Type.f32)
    made = opset13.interpolate(
        taken,
        list(size),
        mode,
        "sizes",
        axes=[2, 3],
        coordinate_transformation_mode="pytorch_half_pixel",
        nearest_mode="floor",
        cube_coeff=-0.75,
    )
    compiled = openvino.Core().compile_model(openvino.Model([made], [taken], "resize"), "CPU")
    found: Floats = compiled([image])[0]
    return found.copy()


def positions(masks: Masks) -> npt.NDArray[np.int64]:
    """Which learned positions patches take, [n, 1024]; see ``vision_siglip.positions``."""
    import numpy as np

    steps = np.arange(PATCHES)[None]
    high, wide = masks[:, :, 0].sum(1)[:, None], masks[:, 0].sum(1)[:, None]
    rows, columns = (
        np.minimum(steps * PATCHES // np.maximum(count, 1), PATCHES - 1) for count in (high, wide)
    )
    places: npt.NDArray[np.int64] = (
        (rows[:, :, None] * PATCHES + columns[:, None]) * masks
    ).reshape(len(masks), -1)
    return places
