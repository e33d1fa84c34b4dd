"""LiteRT's side of a folder: logits and greedy generation through its compiled model, its
tokenizer."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import CpuOptions, Options
from ai_edge_litert.tensor_buffer import TensorBuffer

from phipipe import hardware
from phipipe.backends.choosing import Choose, picked
from phipipe.backends.litert.bundled import bundled
from phipipe.backends.litert.layout import BUNDLE, MODEL, ends
from phipipe.errors import StepFailed

# What the mask adds to the score of a position that must not be seen; litert-torch's own value.
HIDDEN = -1e4

Buffers = dict[str, TensorBuffer]


class Session:
    """Runs the signatures that ship: ``prefill_N`` fills the cache, ``decode`` gives one position's
    logits."""

    def __init__(self, folder: Path) -> None:
        with _quiet():
            self._open(folder)
        self._ends = frozenset(ends(folder))

    def _open(self, folder: Path) -> None:
        # what LiteRT keeps for the whole process is destroyed aloud at its end
        atexit.register(_hush)
        self._model = _load(folder)
        signatures = self._model.get_signature_list()
        self._prefill = next(name for name in signatures if name.startswith("prefill"))
        shapes = {n: d["shape"] for n, d in self._model.get_input_tensor_details("decode").items()}
        self._length = int(
            self._model.get_input_tensor_details(self._prefill)["tokens"]["shape"][1]
        )
        self._context = int(shapes["mask"][-1])
        self._vocabulary = int(
            self._model.get_output_tensor_details("decode")["logits"]["shape"][-1]
        )
        self._inputs, self._outputs = self._buffers("decode")
        self._prompt, _ = self._buffers(self._prefill)
        self._caches = [name for name in shapes if name.startswith("kv_cache")]
        # a masked position counts zero times what is there: that must be a number
        for name in self._caches:
            self._inputs[name].write(np.zeros(shapes[name], np.float32))

    def _buffers(self, signature: str) -> tuple[Buffers, Buffers]:
        named, model = self._model.get_signature_list()[signature], self._model
        inputs = {
            name: model.create_input_buffer_by_name(signature, name) for name in named["inputs"]
        }
        return inputs, {
            name: model.create_output_buffer_by_name(signature, name) for name in named["outputs"]
        }

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of every position, float32 [len(tokens), vocabulary], decoded one by one.

        The prefill signature that ships gives none: no runtime reads them.

        Raises:
            StepFailed: more tokens than the cache holds.
        """
        self._fits(tokens)
        rows = [self._decode(token, position) for position, token in enumerate(tokens)]
        return np.stack(rows)

    def generate(
        self, prompt: Sequence[int], limit: int, choose: Choose | None = None
    ) -> Iterator[int]:
        """At most ``limit`` ids, fewer where the cache is full; the prompt goes through the prefill
        signature. ``choose``: see ``Runtime``.

        Raises:
            StepFailed: the prompt is longer than the cache.
        """
        self._fits(prompt)
        self._fill(prompt[:-1])
        token = prompt[-1]
        for position in range(len(prompt) - 1, min(len(prompt) - 1 + limit, self._context)):
            token = picked(self._decode(token, position), choose)
            yield token
            if token in self._ends:
                return

    def close(self) -> None:
        """Free the model."""
        with _quiet():
            self._inputs, self._outputs, self._prompt = {}, {}, {}
            self._model.close()
            self._model = None

    def _fits(self, tokens: Sequence[int]) -> None:
        if len(tokens) > self._context:
            raise StepFailed(
                f"{len(tokens)} tokens do not fit the cache of {self._context} that the model "
                f"was exported with",
                hint="set `quantize.context_length` to more",
            )

    def _decode(self, token: int, position: int) -> npt.NDArray[np.float32]:
        """Logits, float32 [vocabulary], after ``token``; its keys and values join the cache."""
        mask = np.full((1, 1, 1, self._context), HIDDEN, np.float32)
        mask[..., : position + 1] = 0
        self._run("decode", self._inputs, [token], position, mask)
        logits: npt.NDArray[np.float32] = self._outputs["logits"].read(self._vocabulary, np.float32)
        return logits

    def _fill(self, tokens: Sequence[int]) -> None:
        """Put ``tokens`` into the cache. Behind a short rest stand zeros, overwritten before they
        are seen."""
        length = self._length
        for start in range(0, len(tokens), length):
            part = list(tokens[start : start + length])
            # a slice beyond the end would be moved back, over what is there
            if start + length > self._context:
                for position, token in enumerate(part, start):
                    self._decode(token, position)
                continue
            seen = np.arange(self._context)[None, :] <= np.arange(start, start + length)[:, None]
            mask = np.where(seen, 0, HIDDEN).astype(np.float32)[None, None]
            self._run(self._prefill, self._prompt, part + [0] * (length - len(part)), start, mask)

    def _run(
        self,
        signature: str,
        own: Buffers,
        tokens: list[int],
        start: int,
        mask: npt.NDArray[np.float32],
    ) -> None:
        """One call; the caches it wrote become the next call's input without a copy."""
        own["tokens"].write(np.array([tokens], np.int32))
        own["input_pos"].write(np.arange(start, start + len(tokens), dtype=np.int32))
        own["mask"].write(mask)
        caches = {name: self._inputs[name] for name in self._caches}
        outputs = {n: b for n, b in self._outputs.items() if n != "logits" or signature == "decode"}
        self._model.run_by_name(signature, own | caches, outputs)
        for name in self._caches:
            self._inputs[name], self._outputs[name] = self._outputs[name], self._inputs[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """LiteRT reports every accelerator that it finds or misses, and has no switch for it: shown
    only on a failure."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept, _duplicate(2) as terminal:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)


def _hush() -> None:
    sys.stderr.flush()
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)


@contextlib.contextmanager
def _duplicate(descriptor: int) -> Iterator[int]:
    copy = os.dup(descriptor)
    try:
        yield copy
    finally:
        os.close(copy)


def _load(folder: Path) -> CompiledModel:
    options = Options(
        hardware_accelerators=HardwareAccelerator.CPU,
        cpu_options=CpuOptions(num_threads=hardware.cores()),
    )
    if (folder / MODEL).is_file():
        return CompiledModel.from_file(str(folder / MODEL), options=options)
    if not (folder / BUNDLE).is_file():
        raise StepFailed(f"`{folder}` holds neither `{MODEL}` nor `{BUNDLE}`")
    with bundled(folder / BUNDLE) as view:
        return CompiledModel.from_buffer(bytes(view), options=options)
