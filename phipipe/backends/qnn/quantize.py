"""Quantization: a stage's static graphs in fixed point, with ranges from calibration text."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx

from phipipe.backends.qnn import calibration, fixed_point
from phipipe.backends.qnn.calibrate import ranges_of
from phipipe.backends.qnn.sizes import bits_of as width_of
from phipipe.backends.qnn.stages import (
    LENGTHS,
    data_of,
    facts_of,
    name_of,
    stages,
    write_facts,
)
from phipipe.backends.qnn.verify import verify
from phipipe.backends.qnn.weights import DataFile
from phipipe.backends.widths import from_params, of
from phipipe.errors import StepFailed
from phipipe.models import linears
from phipipe.steps import Inputs, Params


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the graphs of ``params["stage"]`` of ``inputs["model"]`` in fixed point, with the
    ranges that ``calibrate`` left in ``inputs["ranges"]``.

    Linears get ``params["bits"]`` bits, those whose name contains a part of ``params["keep_8bit"]``
    8, and the matrices in ``params["widths"]`` theirs. Writes the stage's two graphs, their weights
    and static.json.

    Raises:
        StepFailed: a linear is not stored as asked.
    """
    source, stage = inputs["model"], params["stage"]
    facts = facts_of(source)
    seen = ranges_of(inputs["ranges"], stage)
    caches = calibration.cache_scales(seen, stages(facts)[stage])
    stored: set[str] = set()
    with DataFile(out / data_of(stage)) as data:
        for kind in LENGTHS:
            name = name_of(stage, kind)
            bits = bits_of(source / name, params)
            fixed_point.quantize(source / name, out / name, data, seen[kind], bits, caches)
            verify(out / name, bits, caches)
            stored.update(bits)
    _check_all(params, stored)
    write_facts(out, facts | {"caches": "uint8"})


def bits_of(graph: Path, params: Params) -> dict[str, int]:
    """Constant of a linear → its bits."""
    model = onnx.load(str(graph), load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    read = (node.input[1] for node in model.graph.node if node.op_type == "MatMul")
    names = sorted(name for name in read if name in constants)
    widths = from_params(params.get("widths", {}))
    found = {}
    for name in names:
        kept = 8 if any(part in name for part in params["keep_8bit"]) else params["bits"]
        mapped = of(linears.linear_of(name) or name, widths)
        found[name] = kept if mapped is None else width_of(mapped)
    return found


def _check_all(params: Params, stored: Collection[str]) -> None:
    """Each matrix that has a width of its own is among the constants ``stored``.

    Raises:
        StepFailed: names the first that is not.
    """
    names = {linears.linear_of(name) for name in stored}
    for name in sorted(params.get("widths", {})):
        prefix, _, last = name.rpartition(".")
        parts = {f"{prefix}.{part}" for part in linears.JOINED.get(last, ())} or {name}
        if not (name in names or parts <= names):
            raise StepFailed(f"the graphs have no linear that holds `{name}`")
