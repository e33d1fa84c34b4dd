"""The tokenizer that mlx-lm reads from a folder, in a limited child."""

from __future__ import annotations

from pathlib import Path

from mlx_lm.utils import load_tokenizer

from phipipe.models.tokenizer import TransformersTokenizer
from phipipe.sandbox.tokenizer import LimitedTokenizer, open_in_child


def opened(folder: str) -> TransformersTokenizer:
    """mlx-lm's own, for a limited child."""
    return TransformersTokenizer(
        load_tokenizer(Path(folder), {"trust_remote_code": False, "local_files_only": True})
    )


def of_folder(folder: Path) -> LimitedTokenizer:
    """The tokenizer that mlx-lm reads from ``folder``; see ``open_in_child``."""
    imports = ["mlx_lm.utils", "transformers:AutoTokenizer"]
    return open_in_child("phipipe.backends.mlx.tokenizer:opened", folder, imports)
