"""What language models should say, computed without phipipe: with numpy and transformers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def log_softmax(logits: Any) -> Any:
    """float64 [positions, vocabulary], in nats."""
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def kld(expected: Any, actual: Any) -> float:
    """Mean divergence over positions, in nats, of two logits [positions, vocabulary]."""
    p, q = log_softmax(expected), log_softmax(actual)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def logits(checkpoint: Path, ids: Sequence[int]) -> Any:
    """float32 [positions, vocabulary]: what transformers makes of ``ids`` in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).logits[0].numpy()
