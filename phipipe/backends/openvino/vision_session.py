"""A folder of OpenVINO that sees: its graphs one by one, for logits, and openvino-genai's pipeline,
as programs use it.

The pipeline prepares pictures by itself and gives no logits. ``clip`` and ``siglip``
do the same here, and tests hold the pipeline's answers against the logits that
come of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
import openvino_genai
from PIL import Image

from phipipe.backends.openvino import clip, session, siglip, tokenizer
from phipipe.backends.openvino.files import EMBEDDING, LANGUAGE, PROJECTION, VISION
from phipipe.backends.openvino.pipeline import greedy, streamed
from phipipe.vision import pictures

Floats = npt.NDArray[np.float32]


class Session(session.Session):
    """``Runtime`` and ``evaluate.pictures.Seeing`` over a folder, on the CPU in fp32 arithmetic."""

    GRAPH = LANGUAGE

    def __init__(
        self, folder: Path, api: str = "cpu", as_run: bool = False, cache: str = ""
    ) -> None:
        super().__init__(folder, api, as_run, cache)
        self._folder = folder
        self._config = json.loads((folder / "config.json").read_text("utf-8"))
        self._embedding = self._compiled(folder / EMBEDDING)

    def _feeds(self, tokens: Sequence[int], before: int) -> session.Feeds:
        return self._feeds_of(self._embed(tokens), before)

    def _feeds_of(self, vectors: Floats, before: int) -> session.Feeds:
        feeds = session.feeds([0] * vectors.shape[1], before)
        del feeds["input_ids"]
        return {**feeds, session.EMBEDS: vectors}

    def _embed(self, tokens: Sequence[int]) -> Floats:
        """float32 [1, n, hidden]."""
        vectors: Floats = self._embedding.infer([np.asarray(tokens, np.int64)[None]])[0]
        return vectors.copy()

    def look(self, picture: Path, prompt: str) -> Floats:
        """Logits of every position of ``prompt`` with the picture in it, float32 [n,
        vocabulary]."""
        known = tokenizer(self._folder)
        before, after = (known.encode(part) for part in prompt.split(pictures.MARK))
        return self.seen(picture, before, after)

    def seen(self, picture: Path, before: Sequence[int], after: Sequence[int]) -> Floats:
        """Logits of every position of tokens ``before`` and ``after`` a picture, and of the
        picture's, [n, vocab]."""
        self._request.reset_state()
        parts = [self._embed(before), self._vectors(picture), self._embed(after)]
        return self._run(self._feeds_of(np.concatenate(parts, 1), 0))

    def _vectors(self, picture: Path) -> Floats:
        """What the language model is given for a picture, float32 [1, n, hidden]."""
        settings = json.loads((self._folder / "preprocessor_config.json").read_text("utf-8"))
        row_end = np.asarray(self._config["sub_GN"][0][0][0], np.float32)
        between = np.asarray(self._config["glb_GN"][0][0], np.float32)
        tower = self._compiled(self._folder / VISION).infer
        way = siglip if self._config["model_type"] == "phi4mm" else clip
        joined = way.seen(pixels(picture), settings, tower, row_end, between)
        vectors: Floats = self._compiled(self._folder / PROJECTION).infer([joined[None]])[0]
        return vectors.copy()

    def describe(self, picture: Path, prompt: str, limit: int) -> Iterator[int]:
        """At most ``limit`` token ids of the pipeline's answer to ``prompt``, chosen greedily."""
        pipeline = openvino_genai.VLMPipeline(str(self._folder), "CPU", **session.FAITHFUL)
        config = greedy(pipeline.get_generation_config(), limit)
        config.apply_chat_template = False  # the prompt is rendered
        image = openvino.Tensor(pixels(picture)[None])
        call = lambda streamer: pipeline.generate(prompt, [image], config, streamer)  # noqa: E731
        yield from streamed(call)

    def close(self) -> None:
        super().close()
        self._embedding = None


def pixels(picture: Path) -> npt.NDArray[np.uint8]:
    """Red, green and blue, uint8 [height, width, 3]."""
    return np.array(Image.open(picture).convert("RGB"))
