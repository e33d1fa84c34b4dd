"""Weights of 8 or 4 bits, rounded and packed by auto-round."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from phipipe.algorithms import autoround
from phipipe.backends.torch import exact, packing
from phipipe.backends.torch.convert import respelled
from phipipe.backends.torch.verify import verify
from phipipe.errors import StepFailed
from phipipe.models import tensors
from phipipe.steps import Inputs, Json, Params


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]`` with the linears of its decoder layers at ``params["bits"]`` bits.

    ``params`` holds the options besides, and in "widths" how single matrices are stored. With
    "signround", ``inputs["calibration"]`` has the tokens to learn from. Where ``inputs["weights"]``
    has learned weights, they are stored as they are. The result is verified from disk before the
    step counts as done.

    Raises:
        StepFailed: auto-round did something else than asked.
    """
    source, patch = inputs["source"], respelled(inputs["source"])
    weights = inputs.get("weights")
    if weights is not None:
        exact.store(source, weights, out, params, patch)
        verify(source, out, params, weights)
        return
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".quantize-") as scratch:
        read = autoround.readable(source, Path(scratch) / "source")
        packed = Path(scratch) / "packed"
        _auto_round(read, packed, params, inputs.get("calibration"))
        _replace_linears(source, packed, out, patch)
    verify(source, out, params)


def _replace_linears(source: Path, packed: Path, out: Path, patch: dict[str, Json]) -> None:
    """Copy ``source`` to ``out`` with what auto-round left in ``packed`` in its linears' place."""
    places = tensors.where_are(sorted(packed.rglob("*.safetensors")))
    config = min(packed.rglob("config.json"), default=None)
    if config is None or not places:
        raise StepFailed("auto-round left no checkpoint")
    settings = json.loads(config.read_text("utf-8")).get("quantization_config", {})

    def change(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        keys = [name.removesuffix("weight") + part for part in tensors.PARTS]
        parts = {key: tensors.read(places[key], key) for key in keys if key in places}
        return parts or {name: tensor}

    tensors.rewrite(source, out, change, {"quantization_config": settings, **patch})


def _auto_round(source: Path, out: Path, params: Params, calibration: Path | None) -> None:
    """Run auto-round in this process."""
    # Packed otherwise without symmetry, it would be AWQ's format, which no CPU layer reads.
    layout = "auto_round" if params["symmetric"] else "auto_round:gptqmodel"
    extra = packing.exceptions(packing.shapes(source), params)
    rounding = autoround.rounder(source, params, extra, calibration)
    rounding.quantize_and_save(str(out), format=layout)
