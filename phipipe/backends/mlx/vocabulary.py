"""The tokenizer in a folder, as mlx-lm reads it."""

from __future__ import annotations

from pathlib import Path

from mlx_lm.utils import load_tokenizer

from phipipe.models.tokenizer import TransformersTokenizer


def opened(folder: str) -> TransformersTokenizer:
    """mlx-lm's own, for a limited child."""
    return TransformersTokenizer(
        load_tokenizer(Path(folder), {"trust_remote_code": False, "local_files_only": True})
    )
