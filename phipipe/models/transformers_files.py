"""What transformers itself reads in a folder: its config and its tokenizer, in this process.

Imported in toolchains alone. Tokenizers of strangers are opened so in limited children.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoTokenizer

from phipipe.models import longrope
from phipipe.models.tokenizer import TransformersTokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def config_of(folder: Path) -> PretrainedConfig | None:
    """The folder's config where transformers would misread it; None, its own default, everywhere
    else."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    changes = longrope.respelled(config)
    return AutoConfig.for_model(**config | changes) if changes else None


def load(folder: Path) -> PreTrainedTokenizerBase:
    """transformers' own tokenizer of ``folder``, in this process; nothing is downloaded, no code of
    it is run."""
    settings = {"trust_remote_code": False, "local_files_only": True}
    return AutoTokenizer.from_pretrained(folder, config=config_of(folder), **settings)


def opened(folder: str) -> TransformersTokenizer:
    """``load``, for a limited child."""
    return TransformersTokenizer(load(Path(folder)))
