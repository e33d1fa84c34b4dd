"""How much memory the layerwise baseline takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint

# Tokens that go through the layers at once: their hidden states take 4 bytes a value.
TOGETHER = 2**16
# Tokens of prompts and answers at once, whose keys and values stay: at 3.8 B, 0.8 MB each.
ANSWERED_TOGETHER = 2**12


# An interpreter with torch and transformers. With it, `memory_bytes` was 9 % above the largest
# RssAnon of 20 samples a second (Linux, 2 windows of 512 tokens, shape of Phi-3.5-mini: 1.88 GB).
RUNTIME_BYTES = 2**29


def memory_bytes(checkpoint: Checkpoint, tokens: int, window: int) -> int:
    """Peak of anonymous memory for the logits of ``tokens`` tokens in windows of ``window``: two
    layers are in it, one that computes and one that is read."""
    ends = checkpoint.vocab_size * checkpoint.hidden_size
    layer = (checkpoint.parameters - ends * (1 if checkpoint.tied else 2)) // checkpoint.layers
    states = min(tokens, max(TOGETHER, window)) * checkpoint.hidden_size
    # a window's logits, and what its softmax makes of them
    scores = 3 * window * checkpoint.vocab_size
    whole = 0
    if checkpoint.weight_bytes not in (2 * checkpoint.parameters, 4 * checkpoint.parameters):
        whole = 4 * checkpoint.parameters  # of several dtypes, or quantized: nothing is mapped
    elif checkpoint.model_type == "phimoe":
        whole = checkpoint.weight_bytes  # experts are merged
    return 4 * (2 * layer + ends + states + scores) + whole + RUNTIME_BYTES
