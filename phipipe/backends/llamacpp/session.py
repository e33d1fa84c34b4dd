"""llama.cpp in this process: quantization, logits of every position, greedy text, vocabulary.

Only ``llama_cpp``'s C interface is used; its own classes keep all logits of a context in memory.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe import hardware
from phipipe.backends.base import absent
from phipipe.errors import RecipeError, StepFailed
from phipipe.sandbox import tokenizer
from phipipe.sandbox.tokenizer import LimitedTokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.steps import Params

BATCH = 512  # tokens that llama.cpp works on at once; also what its own tools use
CONTEXT = 4096  # tokens that ``generate`` may fill if the model allows as many
F32 = 0  # ggml's number


def threads() -> int:
    """How many threads to compute with: what the parent allows this process, else all cores that it
    has."""
    return int(os.environ.get("OMP_NUM_THREADS") or hardware.cores())


def quantize(source: Path, target: Path, params: Params, importance: Path | None) -> None:
    """Write ``source``, a GGUF in 16 or 32 bits, to ``target`` in ``params["type"]``.

    ``importance`` is an ``.npz`` of float32 vectors by tensor name.

    Raises:
        RecipeError: a pattern of ``params["tensors"]`` matches no tensor.
        StepFailed: llama.cpp refused.
    """
    import llama_cpp

    kinds = {
        name: kind
        for name, kind in vars(llama_cpp).items()
        if name.startswith(("GGML_TYPE_", "LLAMA_FTYPE_"))
    }
    asked = llama_cpp.llama_model_quantize_default_params()
    asked.ftype = kinds[f"LLAMA_FTYPE_MOSTLY_{params['type']}"]
    asked.nthread = threads()
    asked.pure = params["pure"]
    if params["output_type"]:
        asked.output_tensor_type = kinds[f"GGML_TYPE_{params['output_type']}"]
    if params["embedding_type"]:
        asked.token_embedding_type = kinds[f"GGML_TYPE_{params['embedding_type']}"]
    overrides = [
        (pattern.encode(), kinds[f"GGML_TYPE_{kind}"]) for pattern, kind in params["tensors"]
    ]
    _check_patterns(source, params)
    kept: list[Any] = []  # llama.cpp reads these arrays until it returns
    if overrides:
        kept.append(
            (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))(*overrides, (None, 0))
        )
        asked.tt_overrides = kept[-1]
    if importance is not None:
        kept.append(_importance(source, importance, kept))
        asked.imatrix = kept[-1]
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(asked)
    )
    if code:
        raise StepFailed(
            f"llama.cpp could not quantize to {params['type']} (code {code}); its words are in "
            f"the log"
        )


def _check_patterns(source: Path, params: Params) -> None:
    import difflib
    import re

    from phipipe.backends.llamacpp import gguf

    names = [tensor.name for tensor in gguf.tensors(source)]
    for pattern, _ in params["tensors"]:
        if not any(re.search(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            raise RecipeError(
                f"`quantize.tensors: {pattern}` is found in no tensor's name",
                hint=f"one is `{near[0]}`",
            )


def _importance(source: Path, path: Path, kept: list[Any]) -> Any:
    """The array of ``llama_model_imatrix_data`` that llama.cpp wants, ended by an entry without a
    name.

    Raises:
        StepFailed: a tensor has no vector; llama.cpp would quantize it without a word.
    """
    import llama_cpp
    import numpy as np

    from phipipe.backends.llamacpp import gguf

    vectors = dict(np.load(path))
    missing = [t.name for t in gguf.linears(source) if t.name not in vectors]
    if missing:
        raise StepFailed(f"the importance matrix has nothing for `{missing[0]}`")
    entries = []
    for name, values in vectors.items():
        kept.append(np.ascontiguousarray(values, np.float32))
        data = kept[-1].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entries.append((name.encode(), data, len(values)))
    return (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(*entries, (None, None, 0))


class _Model:
    """A loaded GGUF; ``vocab_only`` leaves the weights on disk, ``gpu`` puts every layer on the
    GPU."""

    def __init__(self, path: Path, vocab_only: bool = False, gpu: bool = False) -> None:
        import llama_cpp

        self.llama: Any = llama_cpp
        llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        if gpu and not llama_cpp.llama_supports_gpu_offload():
            raise absent("GPU", "this build of llama.cpp")
        params.vocab_only, params.n_gpu_layers = vocab_only, -1 if gpu else 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise StepFailed(f"llama.cpp cannot load `{path.name}`")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def meta(self, key: str) -> str | None:
        """A value of the file's metadata as text, None if it is not there."""
        buffer = ctypes.create_string_buffer(1 << 20)
        length = self.llama.llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def close(self) -> None:
        self.llama.llama_model_free(self.model)


@cache
def _silent() -> Any:
    """A C callback; made once, since llama.cpp keeps a pointer to it."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


class Session:
    """Runtime over a GGUF. Logits are computed in fp32, keys and values too: what is measured is
    the stored weights.

    llama.cpp's flash attention would round queries to 16 bits; text is generated with it, as
    llama.cpp does.
    """

    def __init__(self, path: Path, gpu: bool = False) -> None:
        self._model = _Model(path, gpu=gpu)
        self._llama = self._model.llama
        self._vocabulary = int(self._llama.llama_vocab_n_tokens(self._model.vocab))
        trained = int(self._llama.llama_model_n_ctx_train(self._model.model))
        architecture = self._model.meta("general.architecture")
        original = self._model.meta(f"{architecture}.rope.scaling.original_context_length")
        # F3: with a context beyond the original one llama.cpp takes LongRoPE's long factors for
        # every prompt.
        self._trained, self._original = (
            trained,
            min(trained, int(original)) if original else trained,
        )
        self._context: Any = None
        self._size, self._exact = 0, True

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        import numpy as np

        self._fresh(len(tokens), exact=True)
        rows = np.empty((len(tokens), self._vocabulary), np.float32)
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            self._decode(part, start, every=True)
            pointer = self._llama.llama_get_logits(self._context)
            rows[start : start + len(part)] = np.ctypeslib.as_array(
                pointer, (len(part), self._vocabulary)
            )
        return rows

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        import numpy as np

        self._fresh(len(prompt) + limit, exact=False)
        tokens, position = list(prompt), 0
        for _ in range(limit):
            for start in range(0, len(tokens), BATCH):
                self._decode(tokens[start : start + BATCH], position + start, every=False)
            position += len(tokens)
            pointer = self._llama.llama_get_logits_ith(self._context, -1)
            token = int(np.ctypeslib.as_array(pointer, (self._vocabulary,)).argmax())
            yield token
            if self._llama.llama_vocab_is_eog(self._model.vocab, token):
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
            self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
            return
        self._drop()
        params = self._llama.llama_context_default_params()
        # llama.cpp pads the context to multiples of 256; beyond the original length the wrong
        # factors would follow
        params.n_ctx = min(longest, max(needed, min(CONTEXT, longest)))
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads()
        params.type_k = params.type_v = F32
        if exact:
            params.flash_attn_type = self._llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = self._llama.llama_init_from_model(self._model.model, params)
        if not self._context:
            raise StepFailed(
                f"llama.cpp cannot make a context of {params.n_ctx} tokens: not enough memory"
            )
        self._size, self._exact = int(params.n_ctx), exact

    def _drop(self) -> None:
        if self._context:
            self._llama.llama_free(self._context)
        self._context, self._size = None, 0

    def _decode(self, tokens: Sequence[int], start: int, every: bool) -> None:
        """Read ``tokens`` at positions from ``start``; logits of every one, or of the last."""
        batch = self._llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every or i == len(tokens) - 1
        code = self._llama.llama_decode(self._context, batch)
        self._llama.llama_batch_free(batch)
        if code:
            raise StepFailed(f"llama.cpp could not compute {len(tokens)} tokens (code {code})")


def vocabulary(path: Path) -> LimitedTokenizer:
    """The tokenizer and the chat template inside a GGUF, in a limited child."""
    return tokenizer.open_in_child(
        "phipipe.backends.llamacpp.session:Vocabulary",
        path,
        ["llama_cpp", "llama_cpp.llama_chat_format"],
    )


class Vocabulary:
    """For a limited child: the tokenizer and the chat template inside a GGUF."""

    def __init__(self, path: str) -> None:
        self._model = _Model(Path(path), vocab_only=True)
        self._llama = self._model.llama

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        buffer = (ctypes.c_int32 * room)()
        # (add special tokens: no, read special tokens in the text: yes)
        count = self._llama.llama_tokenize(
            self._model.vocab, data, len(data), buffer, room, False, True
        )
        if count < 0:
            raise StepFailed("llama.cpp could not tokenize a text")
        return list(buffer[:count])

    def decode(self, ids: Sequence[int]) -> str:
        shown = [i for i in ids if not self._llama.llama_vocab_is_control(self._model.vocab, i)]
        tokens = (ctypes.c_int32 * len(shown))(*shown)
        room = 64 * len(shown) + 64
        buffer = ctypes.create_string_buffer(room)
        count = self._llama.llama_detokenize(
            self._model.vocab, tokens, len(shown), buffer, room, False, False
        )
        return buffer.raw[: max(count, 0)].decode("utf-8", "replace")

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self._model.meta("tokenizer.chat_template")
        if template is None:
            raise StepFailed("the GGUF has no chat template")
        formatter = Jinja2ChatFormatter(
            template, eos_token=self._text("eos"), bos_token=self._text("bos")
        )
        return str(formatter(messages=[dict(m) for m in messages]).prompt)

    def _text(self, name: str) -> str:
        token = getattr(self._llama, f"llama_vocab_{name}")(self._model.vocab)
        found = self._llama.llama_vocab_get_text(self._model.vocab, token) if token >= 0 else b""
        return str((found or b"").decode("utf-8", "replace"))
