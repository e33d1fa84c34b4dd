"""A folder of OpenVINO that sees: its graphs one by one, for logits, and openvino-genai's pipeline, as programs use it.

The pipeline prepares pictures by itself and gives no logits. ``prepare`` does the same here (openvino-genai 2026.4;
visual_language/phi3_vision), and tests hold the pipeline's answers against the logits that come of it. Of pictures
that are not square the pipeline takes height for width (``vision.SQUARE``); nothing does so here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe import openvino_session, vision

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

CROP, SIDE = 336, 12  # pixels, and vectors, along a side of a crop
CUBIC = -0.5  # coefficient of the pipeline's bicubic interpolation


class Session(openvino_session.Session):
    """``Runtime`` and ``vision_scoring.Seeing`` over a folder, on the CPU in fp32 arithmetic."""

    GRAPH = openvino_session.LANGUAGE

    def __init__(self, folder: Path, api: str = "cpu") -> None:
        super().__init__(folder, api)
        self._folder = folder
        self._config = json.loads((folder / "config.json").read_text("utf-8"))
        self._embedding = self._compiled(folder / openvino_session.EMBEDDING)

    def _feeds(self, tokens: Sequence[int], before: int) -> dict[str, Any]:
        return self._feeds_of(self._embed(tokens), before)

    def _feeds_of(self, vectors: Floats, before: int) -> dict[str, Any]:
        made = openvino_session.feeds([0] * vectors.shape[1], before)
        del made["input_ids"]
        return {**made, openvino_session.EMBEDS: vectors}

    def _embed(self, tokens: Sequence[int]) -> Floats:
        """float32 [1, n, hidden]."""
        import numpy as np

        made: Floats = self._embedding.infer([np.asarray(tokens, np.int64)[None]])[0].copy()
        return made

    def look(self, picture: Path, prompt: str) -> Floats:
        """Logits of every position of ``prompt`` with the picture in it, float32 [n, vocabulary]."""
        tokenizer = openvino_session.GenaiTokenizer(self._folder)
        before, after = (tokenizer.encode(part) for part in prompt.split(vision.MARK))
        return self.seen(picture, before, after)

    def seen(self, picture: Path, before: Sequence[int], after: Sequence[int]) -> Floats:
        """Logits of every position of tokens ``before`` and ``after`` a picture, and of the picture's, [n, vocab]."""
        import numpy as np

        self._request.reset_state()
        parts = [self._embed(before), self._vectors(picture), self._embed(after)]
        return self._run(self._feeds_of(np.concatenate(parts, 1), 0))

    def _vectors(self, picture: Path) -> Floats:
        """What the language model is given for a picture, float32 [1, n, hidden]."""
        import numpy as np

        settings = json.loads((self._folder / "preprocessor_config.json").read_text("utf-8"))
        crops, (high, wide) = prepare(pixels(picture), settings)
        patches = self._compiled(self._folder / openvino_session.EYES).infer([crops])[0]
        row_end = np.asarray(self._config["sub_GN"][0][0][0], np.float32)
        between = np.asarray(self._config["glb_GN"][0][0], np.float32)
        joined = laid_out(patches, high, wide, row_end, between)
        made: Floats = self._compiled(self._folder / openvino_session.PROJECTION).infer([joined[None]])[0].copy()
        return made

    def describe(self, picture: Path, prompt: str, limit: int) -> Iterator[int]:
        """At most ``limit`` token ids of the pipeline's answer to ``prompt``, chosen greedily."""
        import openvino
        import openvino_genai

        pipeline = openvino_genai.VLMPipeline(str(self._folder), "CPU", **openvino_session.FAITHFUL)
        config = openvino_session.greedy(pipeline.get_generation_config(), limit)
        config.apply_chat_template = False  # the prompt is rendered
        image = openvino.Tensor(pixels(picture)[None])
        call = lambda streamer: pipeline.generate(prompt, [image], config, streamer)  # noqa: E731
        yield from openvino_session.streamed(call)

    def close(self) -> None:
        super().close()
        self._embedding = None


def pixels(picture: Path) -> npt.NDArray[np.uint8]:
    """Red, green and blue, uint8 [height, width, 3]."""
    import numpy as np
    from PIL import Image

    return np.array(Image.open(picture).convert("RGB"))


def prepare(image: npt.NDArray[np.uint8], settings: Mapping[str, Any]) -> tuple[Floats, tuple[int, int]]:
    """An image as the pipeline crops it: float32 [1 + n, 3, 336, 336], and how many crops it is high and wide.

    ``settings``: ``preprocessor_config.json``.
    """
    import numpy as np

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
    grid = resized.reshape(high, CROP, wide, CROP, 3).transpose(0, 2, 1, 3, 4).reshape(-1, CROP, CROP, 3)
    crops = np.concatenate([whole[None], grid]) / np.float32(255)
    crops = (crops - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    return np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32), (high, wide)


def _linear(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Bilinear, as the pipeline does it: corners are not quite aligned, and fractions are cut off."""
    import numpy as np

    made = image.astype(np.float32)
    for axis, length in ((1, width), (0, height)):
        place = np.arange(length, dtype=np.float32) * (np.float32(image.shape[axis] - 1) / np.float32(length))
        left = place.astype(np.int64)
        share = (place - left).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        low, high = np.take(made, left, axis), np.take(made, left + 1, axis)
        made = low + (high - low) * share
    return made.astype(np.uint8)


def _cubic(length: int) -> Floats:
    """Weights [336, length] of the bicubic interpolation of a row of ``length`` pixels to 336."""
    import numpy as np

    made = np.zeros((CROP, length), np.float32)
    for i in range(CROP):
        place = i * length / CROP
        for tap in range(-1, 3):
            x = abs(place - math.floor(place) - tap)
            near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
            far = ((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC
            made[i, min(max(math.floor(place) + tap, 0), length - 1)] += near if x <= 1 else far
    return made


def laid_out(patches: Floats, high: int, wide: int, row_end: Floats, between: Floats) -> Floats:
    """Patches of all crops [1 + n, 576, w] in the order of the rows they form, joined by fours: [vectors, 4 · w]."""
    import numpy as np

    count, _, width = patches.shape
    joined = patches.reshape(count, SIDE, 2, SIDE, 2, width).transpose(0, 1, 3, 2, 4, 5)
    joined = joined.reshape(count, SIDE, SIDE, 4 * width)
    grid = joined[1 : 1 + high * wide].reshape(high, wide, SIDE, SIDE, -1).transpose(0, 2, 1, 3, 4)

    def rows(found: Floats) -> Floats:
        ends = np.broadcast_to(row_end, (found.shape[0], 1, len(row_end)))
        return np.concatenate([found, ends], 1).reshape(-1, len(row_end))

    return np.concatenate([rows(grid.reshape(high * SIDE, wide * SIDE, -1)), between[None], rows(joined[0])])
