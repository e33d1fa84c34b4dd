"""The header of a GGUF."""

from __future__ import annotations

from pathlib import Path

import gguf

from phipipe.backends.llamacpp.stored import Tensor


def tensors(path: Path) -> list[Tensor]:
    """All tensors of a file that phipipe's own steps wrote (the reader hangs on hostile ones)."""
    return [
        Tensor(t.name, t.tensor_type.name, tuple(int(n) for n in t.shape))
        for t in gguf.GGUFReader(path).tensors
    ]
