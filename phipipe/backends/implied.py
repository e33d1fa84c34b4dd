"""What a config leaves out, written out for converters whose defaults are others'.

transformers leaves keys out of a ``config.json`` that have its own defaults. mlx-lm ties the LM
head of a Llama that does not say otherwise, and drops the one that is stored; llama.cpp's converter
takes heads to be as wide as hidden size / heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phipipe.backends.rules import Fixup
from phipipe.steps import Json

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

# Phi's own converters were written from configs that leave nothing out.
_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text")
# transformers' defaults, where they do not follow from the shape (configuration_*.py).
_RMS_NORM_EPS = 1e-6
_THETAS = {"smollm3": 2000000.0, "gemma3_text": 1000000.0}


def missing(checkpoint: Checkpoint) -> dict[str, Json]:
    """Keys that the config leaves out, or has as null, and their values."""
    if checkpoint.model_type not in _TYPES:
        return {}
    meant: dict[str, Json] = {
        "tie_word_embeddings": checkpoint.tied,
        "rms_norm_eps": _RMS_NORM_EPS,
    }
    if checkpoint.head_size != checkpoint.hidden_size // checkpoint.heads:
        meant["head_dim"] = checkpoint.head_size
    if not checkpoint.resaved:  # there, another fix-up writes it
        meant["rope_theta"] = _THETAS.get(checkpoint.model_type, checkpoint.rope_theta)
    return {key: value for key, value in meant.items() if checkpoint.config.get(key) is None}


IMPLIED: tuple[Fixup, ...] = (
    Fixup(
        id="F10",
        rule="F10",
        when=lambda r, c: bool(missing(c)),
        reason="config.json leaves out what transformers has a default for; this converter's "
        "default is another",
        patch=missing,
    ),
)
