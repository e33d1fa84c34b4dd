"""llama.cpp in this process: logits of every position, greedy text.

Only ``llama_cpp``'s C interface is used; its own classes keep all logits of a context in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from phipipe import hardware
from phipipe.backends.choosing import Choose, picked
from phipipe.backends.llamacpp.model import Model
from phipipe.errors import StepFailed

BATCH = 512  # tokens that llama.cpp works on at once; also what its own tools use
CONTEXT = 4096  # tokens that ``generate`` may fill if the model allows as many
F32 = 0  # ggml's number
CACHES = {"q8": 8, "q4": 2}  # and those of q8_0 and q4_0
BLOCK = 32  # values that share a scale in them


def threads() -> int:
    """How many threads to compute with: what the parent allows this process, else all cores that it
    has."""
    return hardware.threads(hardware.cores())


class Session:
    """Runtime over a GGUF. Logits are computed in fp32, keys and values too: what is measured is
    the stored weights. ``as_run``: both as llama.cpp does by default.

    llama.cpp's flash attention would round queries to 16 bits; text is generated with it, as
    llama.cpp does.
    """

    def __init__(
        self, path: Path, gpu: bool = False, as_run: bool = False, cache: str = ""
    ) -> None:
        self._as_run, self._cache = as_run, CACHES.get(cache)
        self._model = Model(path, gpu=gpu)
        self._vocabulary = int(llama_cpp.llama_vocab_n_tokens(self._model.vocab))
        self._trained = int(llama_cpp.llama_model_n_ctx_train(self._model.model))
        architecture = self._model.meta("general.architecture")
        original = self._model.meta(f"{architecture}.rope.scaling.original_context_length")
        # F3: with a context beyond the original one llama.cpp takes LongRoPE's long factors for
        # every prompt.
        self._original = min(self._trained, int(original)) if original else self._trained
        self._context: Any = None
        self._size, self._exact = 0, True

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        self._fresh(len(tokens), exact=not self._as_run)
        rows = np.empty((len(tokens), self._vocabulary), np.float32)
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            self._decode(part, start, every=True)
            pointer = llama_cpp.llama_get_logits(self._context)
            rows[start : start + len(part)] = np.ctypeslib.as_array(
                pointer, (len(part), self._vocabulary)
            )
        return rows

    def generate(
        self, prompt: Sequence[int], limit: int, choose: Choose | None = None
    ) -> Iterator[int]:
        self._fresh(len(prompt) + limit, exact=False)
        tokens, position = list(prompt), 0
        for _ in range(limit):
            for start in range(0, len(tokens), BATCH):
                self._decode(tokens[start : start + BATCH], position + start, every=False)
            position += len(tokens)
            pointer = llama_cpp.llama_get_logits_ith(self._context, -1)
            token = picked(np.ctypeslib.as_array(pointer, (self._vocabulary,)), choose)
            yield token
            if llama_cpp.llama_vocab_is_eog(self._model.vocab, token):
                return
            tokens = [token]

    def close(self) -> None:
        self._drop()
        self._model.close()

    def _fresh(self, needed: int, exact: bool) -> None:
        """An empty context of at least ``needed`` tokens; a longer one than the original only where
        it must be."""
        if needed > self._trained:
            raise StepFailed(
                f"{needed} tokens do not fit into the model's context of {self._trained}"
            )
        longest = self._original if needed <= self._original else self._trained
        if needed <= self._size <= longest and exact == self._exact:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
            return
        self._drop()
        params = llama_cpp.llama_context_default_params()
        # llama.cpp pads the context to multiples of 256; beyond the original length the wrong
        # factors would follow
        params.n_ctx = min(longest, max(needed, min(CONTEXT, longest)))
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads()
        if not self._as_run:
            params.type_k = params.type_v = F32
        if self._cache is not None:
            params.type_k = params.type_v = self._cache
            # without it values cannot be quantized
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if exact:
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model.model, params)
        if not self._context:
            why = "not enough memory" if self._cache is None else self._unkept()
            raise StepFailed(f"llama.cpp cannot make a context of {params.n_ctx} tokens: {why}")
        self._size, self._exact = int(params.n_ctx), exact

    def _unkept(self) -> str:
        return f"its quantized cache takes heads of a multiple of {BLOCK} values, and some memory"

    def _drop(self) -> None:
        if self._context:
            llama_cpp.llama_free(self._context)
        self._context, self._size = None, 0

    def _decode(self, tokens: Sequence[int], start: int, every: bool) -> None:
        """Read ``tokens`` at positions from ``start``; logits of every one, or of the last."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every or i == len(tokens) - 1
        code = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        if code:
            raise StepFailed(f"llama.cpp could not compute {len(tokens)} tokens (code {code})")
