"""A GGUF as llama.cpp loads it."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import llama_cpp

from phipipe.backends.absent import absent
from phipipe.errors import StepFailed


class Model:
    """A loaded GGUF; ``vocab_only`` leaves the weights on disk, ``gpu`` puts every layer on the
    GPU."""

    def __init__(self, path: Path, vocab_only: bool = False, gpu: bool = False) -> None:
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
        length = llama_cpp.llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def close(self) -> None:
        """Free it."""
        llama_cpp.llama_model_free(self.model)


@cache
def _silent() -> object:
    """A C callback; made once, since llama.cpp keeps a pointer to it."""
    return llama_cpp.llama_log_callback(lambda level, text, data: None)
