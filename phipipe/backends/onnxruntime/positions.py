"""Rotary tables as transformers computes them, where onnxruntime-genai's builder knows the kind of
scaling for some architectures only.

0.18 leaves linear scaling out for Llama without a word, takes YaRN's defaults for zeros, and
refuses llama3 for all but Llama.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class _Builder(Protocol):
    rope_attrs: Mapping[str, int]


@contextlib.contextmanager
def scaled(source: Path, kind: str) -> Iterator[None]:
    """Have the builder take its tables of cosines and sines from transformers' frequencies for
    scaling of ``kind`` in the config of the checkpoint ``source``."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    model_class = sys.modules["builders.base"].Model
    tables = "make_rotary_embedding_caches_from_scratch"
    with (
        patch.object(model_class, "make_rope_init", lambda self, config: None),
        patch.object(model_class, tables, _tables(frequencies, float(scale))),
    ):
        yield


def _tables(
    frequencies: torch.Tensor, scale: float
) -> Callable[[_Builder], tuple[torch.Tensor, torch.Tensor]]:
    """``frequencies`` [pairs], in radians per position; cosines and sines are multiplied with
    ``scale``."""

    def tables(self: _Builder) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.arange(self.rope_attrs["cache_length"], dtype=torch.float32)
        angles = torch.outer(positions, frequencies.to(torch.float32))
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * scale, angles.sin() * scale

    return tables
