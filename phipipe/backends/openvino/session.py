"""A folder's graph in this process: logits, greedy text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino

from phipipe.backends.absent import absent
from phipipe.backends.arrays import Array
from phipipe.backends.choosing import Choose, picked
from phipipe.backends.openvino.files import MODEL
from phipipe.models import tokenizer_files

EMBEDS = "inputs_embeds"
# Tokens that are read at once where the cache counts: those of one call see each other's keys and
# values before they are rounded into the cache. Mean KL divergence on the embedded model, 8 bits,
# with a cache of 4: 1.1e-5 in one call, 5.2e-4 in calls of 64, 5.3e-4 token by token.
CHUNK = 32
# Arithmetic and cache in fp32, activations never rounded to 8 bits: what is left is what the stored
# weights cost.
FAITHFUL = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
}
Feeds = dict[str, Array]  # a graph's inputs by name


def feeds(tokens: Sequence[int] | npt.NDArray[np.int32], before: int = 0) -> Feeds:
    """Inputs for one pass over ``tokens``, of which the cache holds ``before`` already."""
    count = len(tokens)
    return {
        "input_ids": np.asarray(tokens, np.int64)[None],
        "attention_mask": np.ones((1, before + count), np.int64),
        "position_ids": np.arange(before, before + count, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }


class Session:
    """``Runtime`` over a folder: on the CPU in fp32 arithmetic, with "intel-gpu" on the GPU as it
    computes by default. ``as_run``: so on the CPU, too; ``cache`` is the type that it keeps keys
    and values in, if not its own.

    Raises:
        TargetError: OpenVINO sees no GPU.
    """

    GRAPH = MODEL

    def __init__(
        self, folder: Path, api: str = "cpu", as_run: bool = False, cache: str = ""
    ) -> None:
        config = json.loads((folder / "generation_config.json").read_text("utf-8"))
        self._ends = set(tokenizer_files.end_ids(config.get("eos_token_id")))
        self._core = openvino.Core()
        gpu = api == "intel-gpu"
        if gpu and not any(name.startswith("GPU") for name in self._core.available_devices):
            raise absent("Intel GPU", "OpenVINO")
        kept = {"KV_CACHE_PRECISION": cache} if cache else {}
        settings = kept if gpu or as_run else FAITHFUL
        self._where, self._as_run = ("GPU" if gpu else "CPU", settings), as_run
        self._request = self._compiled(folder / self.GRAPH)

    def _compiled(self, path: Path) -> openvino.InferRequest:
        return self._core.compile_model(str(path), *self._where).create_infer_request()

    def _feeds(self, tokens: Sequence[int], before: int) -> Feeds:
        return feeds(tokens, before)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        self._request.reset_state()
        step = CHUNK if self._as_run else len(tokens)
        parts = [
            self._run(self._feeds(tokens[start : start + step], start))
            for start in range(0, len(tokens), step)
        ]
        return np.concatenate(parts)

    def generate(
        self, prompt: Sequence[int], limit: int, choose: Choose | None = None
    ) -> Iterator[int]:
        self._request.reset_state()
        pending, done = list(prompt), 0
        for _ in range(limit):
            token = picked(self._run(self._feeds(pending, done))[-1], choose)
            yield token
            if token in self._ends:
                return
            pending, done = [token], done + len(pending)

    def _run(self, inputs: Feeds) -> npt.NDArray[np.float32]:
        self._request.infer(inputs)
        return np.array(self._request.get_tensor("logits").data[0], np.float32)

    def close(self) -> None:
        self._request = self._core = None
