"""The checkpoint with its floating-point tensors in another dtype."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from phipipe.models import longrope, tensors
from phipipe.steps import Inputs, Json, Params


def cast(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: copy the checkpoint file by file, floating-point tensors cast to
    ``params["dtype"]``."""
    dtype = getattr(torch, params["dtype"])

    def change(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor}

    settings = {"torch_dtype": params["dtype"], **respelled(inputs["source"])}
    tensors.rewrite(inputs["source"], out, change, settings)


def respelled(source: Path) -> dict[str, Json]:
    """Keys of ``config.json`` that transformers must find spelled in another way."""
    return longrope.respelled(json.loads((source / "config.json").read_text("utf-8")))
