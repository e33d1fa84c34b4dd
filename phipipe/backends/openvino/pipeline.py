"""openvino-genai's pipeline, as programs use it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
import openvino_genai

from phipipe.backends.choosing import Choose
from phipipe.errors import StepFailed


class Pipeline:
    """``Runtime`` over openvino-genai's pipeline, as programs use it: the way to an NPU, which
    yields tokens only."""

    def __init__(self, folder: Path, device: str, settings: Mapping[str, object]) -> None:
        self._pipeline = openvino_genai.LLMPipeline(str(folder), device, **settings)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        raise StepFailed("openvino-genai's pipeline yields tokens, and no logits")

    def generate(
        self, prompt: Sequence[int], limit: int, choose: Choose | None = None
    ) -> Iterator[int]:
        """Tokens as they come.

        Raises:
            StepFailed: they are to be chosen otherwise than greedily.
        """
        if choose is not None:
            raise StepFailed("openvino-genai's pipeline gives no logits to choose tokens by")
        ids = openvino.Tensor(np.asarray(prompt, np.int64)[None])
        config = greedy(self._pipeline.get_generation_config(), limit)
        yield from streamed(lambda streamer: self._pipeline.generate(ids, config, streamer))

    def close(self) -> None:
        self._pipeline = None


def greedy(config: openvino_genai.GenerationConfig, limit: int) -> openvino_genai.GenerationConfig:
    """A pipeline's generation ``config``, set to at most ``limit`` of the likeliest tokens."""
    config.do_sample, config.num_beams, config.max_new_tokens = False, 1, limit
    return config


class _Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Puts every token of a pipeline into ``ready``."""

    def __init__(self, ready: queue.SimpleQueue[int | BaseException | None]) -> None:
        super().__init__()
        self._ready = ready

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        for one in token if isinstance(token, list) else [token]:
            self._ready.put(int(one))
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


def streamed(call: Callable[[openvino_genai.StreamerBase], object]) -> Iterator[int]:
    """The tokens of ``call``, a pipeline's, which is given a streamer: it runs in a thread and
    hands each one over."""
    ready: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            call(_Streamer(ready))
            ready.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again where the tokens are wanted)
            ready.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while (token := ready.get()) is not None:
        if isinstance(token, BaseException):
            raise token
        yield token
    thread.join()
