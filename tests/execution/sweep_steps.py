"""Steps for the tests of steps that go through the layers of one checkpoint side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STEPS = {"sum": "sweep_steps:total"}


def total(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """The sum of each layer's weights. It ``fails_at`` a layer, its process ``dies_at`` one, it
    ``writes`` into what it got, or goes ``backwards`` afterwards."""
    import torch

    from phipipe.errors import StepFailed
    from phipipe.models.layerwise import Layerwise

    model, sums = Layerwise(inputs["source"]), []
    order = [*range(len(model.layers))]
    for i in [*order, *reversed(order)] if params.get("backwards") else order:
        if i == params.get("fails_at"):
            raise StepFailed("it cannot")
        if i == params.get("dies_at"):
            os._exit(1)
        with torch.inference_mode():
            weights = model.weights(i, written=params.get("writes", False))
            sums.append(sum(float(tensor.double().sum()) for tensor in weights.values()))
            if params.get("writes"):
                for tensor in weights.values():
                    tensor.zero_()
    (out / "sums.txt").write_text(" ".join(map(repr, sums)))
