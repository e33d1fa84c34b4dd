"""What the weights of an ONNX decoder graph take."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from phipipe.backends.base import Job
from phipipe.backends.onnxruntime import BITS, schemes
from phipipe.backends.onnxruntime.graph import attributes, linears, load, place
from phipipe.backends.onnxruntime.layout import CONFIG, DATA, MODEL
from phipipe.backends.onnxruntime.options import Options
from phipipe.backends.widths import to_params

# Tables that are computed from the config, not learned: no part of the weights' size.
TABLES = ("cos_cache", "sin_cache")


def asked(model: Path, precision: str, **options: Any) -> dict[str, Any]:
    """Parameters of the step ``quantize`` for the unquantized graph in ``model``, as planned."""
    chosen = Options.model_validate(options)
    config = json.loads((model / CONFIG).read_text("utf-8"))["model"]["decoder"]
    shape: Any = SimpleNamespace(layers=config["num_hidden_layers"], tied=False, model_type="phi3")
    recipe: Any = SimpleNamespace(precision=precision)
    found = to_params(schemes.widths_of(Job(recipe, chosen, shape)))
    dumped = chosen.model_dump(mode="json", exclude={"map", "mixed", "rotate"})
    return {"bits": BITS[precision], **dumped, "widths": found}


def describe(folder: Path) -> dict[str, Any]:
    """What the weights of ``folder`` take.

    Returns ``parameters``, ``weight_bytes`` (all initializers but rotary tables),
    ``bits_per_weight`` (8 × weight_bytes / parameters), ``size_bytes`` (both files) and ``linears``
    (bits → how many).
    """
    model = load(folder)
    shapes = {t.name: t for t in model.graph.initializer}
    counted: dict[str, int] = {n.weight: n.k * n.n for n in linears(model)}
    widths = [linear.dtype.removeprefix("fp") for linear in linears(model)]
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            found = attributes(node)
            widths.append(str(found["bits"]))
            counted |= {node.input[1]: found["K"] * found["N"], **dict.fromkeys(node.input[2:], 0)}
        elif node.op_type == "GatherBlockQuantized" and node.input[0] in shapes:
            counted |= dict.fromkeys(node.input[2:], 0)
    weights = [t for t in model.graph.initializer if not t.name.startswith(TABLES)]
    parameters = sum(counted.get(t.name, math.prod(t.dims)) for t in weights)
    weight_bytes = sum(place(t)[2] for t in weights)
    return {
        "parameters": parameters,
        "weight_bytes": weight_bytes,
        "bits_per_weight": round(8 * weight_bytes / parameters, 4),
        "size_bytes": sum((folder / name).stat().st_size for name in (MODEL, DATA)),
        "linears": {width: widths.count(width) for width in sorted(set(widths), key=int)},
    }
