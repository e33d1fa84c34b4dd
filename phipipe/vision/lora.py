"""The language model of Phi-4-multimodal: Phi-4-mini, with the low-rank adapter that goes with
pictures merged in.

The original switches adapters by what a prompt holds: one for pictures, one for speech, none for
text alone. A runtime has one set of weights; it gets the one for pictures, which the original uses
wherever there is a picture (Microsoft 2025, arXiv:2503.01743, section 2.1).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from phipipe.errors import StepFailed
from phipipe.models import mapped, tensor_places
from phipipe.steps import Inputs, Params
from phipipe.vision import language

BASE = ".base_layer."


def cut(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the language model of ``inputs["original"]``, one tensor in memory at a time.

    Raises:
        StepFailed: an adapter's matrices are missing, or of other shapes than its config says.
    """
    original = inputs["original"]
    checkpoint = mapped.Checkpoint(original)
    others = language.cut_files(original, out).others
    rank, alpha = _adapter(original)
    kept, merged = {}, {}
    for name, place in checkpoint.places.items():
        if name.startswith(others) or ".lora_" in name:
            continue
        plain = name.replace(BASE, ".")
        kept[plain] = place
        if plain != name:
            merged[plain] = partial(_merged, checkpoint, name, rank, alpha)
    tensor_places.write(out / language.WEIGHTS, original, kept, merged)


def _adapter(original: Path) -> tuple[int, float]:
    """Rank and alpha of the pictures' adapter (LoRA: Hu et al. 2021, arXiv:2106.09685)."""
    settings = json.loads((original / "config.json").read_text("utf-8"))["vision_lora"]
    return int(settings["r"]), float(settings["lora_alpha"])


def _merged(checkpoint: mapped.Checkpoint, name: str, rank: int, alpha: float) -> bytes:
    """W + alpha / rank · B · A, added in fp32 and stored like W."""
    stem, kind = name.split(BASE)
    base = checkpoint.tensor(name)
    if kind != "weight":
        return _bytes(base)
    try:
        down, up = (checkpoint.tensor(f"{stem}.lora_{which}.vision.weight") for which in "AB")
    except KeyError as missing:
        raise StepFailed(
            f"the checkpoint has no {missing}: the adapter for pictures is incomplete"
        ) from None
    if down.shape != (rank, base.shape[1]) or up.shape != (base.shape[0], rank):
        raise StepFailed(
            f"`{stem}.lora_A` and `lora_B` do not make a change of rank {rank} of `{name}`"
        )
    return _bytes(
        torch.addmm(base.float(), up.float(), down.float(), alpha=alpha / rank).to(base.dtype)
    )


def _bytes(tensor: torch.Tensor) -> bytes:
    raw: bytes = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return raw
