"""What a folder really holds: its graph and the matrices in it, compared with what was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Lattice
from phipipe.backends.openvino.files import MODEL, TOKENIZERS
from phipipe.backends.openvino.sizes import Widths
from phipipe.backends.widths import FLOAT_BITS
from phipipe.errors import StepFailed
from phipipe.models import linears
from phipipe.steps import Params

INPUTS = {"input_ids", "attention_mask", "position_ids", "beam_idx"}
BITS = {"u4": 4, "i4": 4, "u8": 8, "i8": 8}
PASSED = ("Convert", "Reshape", "Transpose")  # between a constant and the node that uses it


def read(folder: Path) -> openvino.Model:
    """The folder's graph; weights are mapped, not loaded."""
    return openvino.Core().read_model(str(folder / MODEL))


def complete(folder: Path) -> openvino.Model:
    """The graph of ``folder``, which is complete.

    Raises:
        StepFailed: a file is missing; or the graph keeps no cache of its own, or computes in bf16.
    """
    for name in (MODEL, *TOKENIZERS, "config.json", "generation_config.json"):
        if not (folder / name).is_file():
            raise StepFailed(f"optimum wrote no `{name}`")
    model = read(folder)
    taken = {name for port in model.inputs for name in port.get_names()}
    if taken != INPUTS or not model.get_sinks():
        raise StepFailed(
            f"the converted graph has unexpected inputs, or no cache: {', '.join(sorted(taken))}"
        )
    ports = [port for node in model.get_ops() for port in node.outputs()]
    if any(port.get_element_type().get_type_name() == "bf16" for port in ports):
        raise StepFailed("the converted graph computes in bf16")
    return model


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A stored matrix, by the node that reads it first. ``group`` is 0 for floats; a row's length
    is ``width``."""

    name: str
    constant: str
    embedding: bool
    kind: str  # OpenVINO's element type
    size: int
    width: int
    group: int
    zero_point: bool
    scale: str | None = None  # the constant that holds the scales
    head: bool = False  # the last MatMul reads it: the LM head, or an embedding tied to it

    @property
    def matrix(self) -> str | None:
        """What it is called on all backends."""
        return matrix_of(self.constant)


def matrix_of(constant: str) -> str | None:
    """The name in ``models.linears`` of the matrix that optimum keeps in ``constant``, which it
    names after the checkpoint's tensor."""
    stem = constant.removeprefix("self.").removesuffix("._openvino_orig_weight")
    return linears.linear_of(f"{stem.removesuffix('.weight')}.weight")


def weights(model: openvino.Model) -> list[Weight]:
    """Matrices that MatMul and Gather nodes read, in the order of computation; shared ones once."""
    matrices: dict[str, Weight] = {}
    last: Weight | None = None
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        for port in {"MatMul": (0, 1), "Gather": (0,)}.get(kind, ()):
            weight = _weight(node, node.input_value(port).get_node())
            if weight:
                last = matrices.setdefault(weight.constant, weight)
    return [replace(weight, head=weight is last) for weight in matrices.values()]


def _weight(reader: openvino.Node, node: openvino.Node) -> Weight | None:
    """The matrix behind ``node``: a constant, perhaps less a zero point, perhaps times a scale."""
    node, scale, zero = _behind(node), None, None
    if node.get_type_name() == "Multiply":
        node, scale = (_behind(node.input_value(port).get_node()) for port in (0, 1))
    if node.get_type_name() == "Subtract":
        node, zero = (_behind(node.input_value(port).get_node()) for port in (0, 1))
    parts = [part for part in (node, scale, zero) if part is not None]
    if any(part.get_type_name() != "Constant" for part in parts):
        return None
    shape = list(node.get_output_shape(0))
    if sum(length > 1 for length in shape) < 2:  # rotary frequencies and the like
        return None
    return Weight(
        name=reader.get_friendly_name(),
        constant=node.get_friendly_name(),
        embedding=reader.get_type_name() == "Gather",
        kind=node.get_element_type().get_type_name(),
        size=math.prod(shape),
        width=shape[-1]
        if scale is None or len(scale.get_output_shape(0)) < 3
        else shape[-1] * shape[-2],
        group=0 if scale is None else math.prod(shape) // math.prod(scale.get_output_shape(0)),
        zero_point=zero is not None,
        scale=None if scale is None else scale.get_friendly_name(),
    )


def _behind(node: openvino.Node) -> openvino.Node:
    while node.get_type_name() in PASSED:
        node = node.input_value(0).get_node()
    return node


def verify(before: Sequence[Weight], after: Sequence[Weight], params: Params) -> None:
    """``after`` holds the matrices of ``before``, stored as ``params`` (bits and options) ask.

    Raises:
        StepFailed: names the first that is not as it should be.
    """
    shapes = [
        {weight.name: (weight.size, weight.width) for weight in ones} for ones in (before, after)
    ]
    if shapes[0] != shapes[1]:
        changed = sorted(
            name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)
        )
        raise StepFailed(f"NNCF changed what `{changed[0]}` reads")
    widths: Widths = params.get("widths", {})
    others = [weight for weight in after if weight.matrix not in widths]
    verify_mapped(after, widths, "i" if params["symmetric"] else "u")
    kind = ("i" if params["symmetric"] else "u") + str(params["bits"])
    if params["bits"] == 8:
        for weight in others:
            _check(weight, {kind}, -1)
        return
    floats = {weight.name: weight.kind for weight in before}
    ranked = ratio_defining(others, params["all_layers"])
    for weight in others:
        rest = {"none": floats[weight.name], "int8_sym": "i8", "int8_asym": "u8"}[params["backup"]]
        allowed = {kind, rest} if params["ratio"] < 1 else {kind}
        size = params["group_size"] if weight.kind == kind else -1
        _check(weight, allowed if weight in ranked else {rest}, size)
    if ranked:
        _check_ratio(ranked, kind, params["ratio"])


def _check_ratio(ranked: Sequence[Weight], kind: str, ratio: float) -> None:
    total = sum(weight.size for weight in ranked)
    share = sum(weight.size for weight in ranked if weight.kind == kind) / total
    largest = max(weight.size for weight in ranked) / total
    if not 0 < share <= ratio or share + largest < ratio - 1e-9:
        raise StepFailed(f"NNCF gave 4 bits to {share:.1%} of the weights, not {ratio:.1%}")


def verify_mapped(matrices: Sequence[Weight], widths: Widths, sign: str) -> None:
    """Each matrix in ``widths`` is there, and stored so, as integers of ``sign`` ("i", "u").

    Raises:
        StepFailed: names the first that is not.
    """
    named = {weight.matrix: weight for weight in matrices}
    for name, (bits, size) in widths.items():
        if name not in named:
            raise StepFailed(f"the graph has no matrix that holds `{name}` alone")
        _check(named[name], {"f16" if bits == FLOAT_BITS else f"{sign}{bits}"}, size)


def verify_learned(model: openvino.Model, learned: Lattice) -> None:
    """The codes and scales in ``model`` are those of ``learned``, and nothing was rounded again.

    Raises:
        StepFailed: names the first matrix that holds others, or is not there.
    """
    constants = {n.get_friendly_name(): n for n in model.get_ops() if _is_constant(n)}
    held = {weight.matrix: weight for weight in weights(model) if weight.scale}
    if lost := learned.names - held.keys():
        raise StepFailed(f"the graph does not hold the learned `{min(lost)}`")
    for name in sorted(learned.names):
        weight, matrix = held[name], learned[name]
        codes = _codes(constants[weight.constant]).reshape(matrix.codes.shape)
        scales = np.asarray(constants[str(weight.scale)].data).reshape(matrix.scales.shape)
        if not (np.array_equal(codes, matrix.codes) and np.array_equal(scales, matrix.scales)):
            raise StepFailed(f"`{name}` is not stored as it was learned")


def _is_constant(node: openvino.Node) -> bool:
    return bool(node.get_type_name() == "Constant")


def _codes(constant: openvino.op.Constant) -> npt.NDArray[np.int8]:
    """The integers of an i4 or i8 constant; of 4 bits, two lie in a byte, the first in the low
    half."""
    raw = np.asarray(constant.data)
    if constant.get_element_type() == openvino.Type.i8:
        return raw
    rows = np.asarray(raw.reshape(1, -1).view(np.uint8) ^ 0x88, np.uint8)
    return lattice.unpacked(rows, 4)


def verify_unquantized(matrices: Sequence[Weight], kind: str) -> None:
    """There are matrices, and each is stored as ``kind`` ("f16", "f32").

    Raises:
        StepFailed: names the first that is not.
    """
    if not matrices:
        raise StepFailed("the graph has no weights")
    for weight in matrices:
        _check(weight, {kind}, -1)


def ratio_defining(matrices: Sequence[Weight], all_layers: bool) -> list[Weight]:
    """The matrices that ``ratio`` counts: NNCF leaves out embeddings and the LM head, unless told
    otherwise."""
    return [weight for weight in matrices if all_layers or not (weight.embedding or weight.head)]


def _check(weight: Weight, kinds: set[str], group_size: int) -> None:
    if weight.kind not in kinds:
        raise StepFailed(
            f"`{weight.name}` is stored as {weight.kind}, not {' or '.join(sorted(kinds))}"
        )
    if weight.kind not in BITS:
        return
    group = weight.width if group_size == -1 else group_size
    if weight.group != group:
        raise StepFailed(f"`{weight.name}` has a scale per {weight.group} weights, not {group}")
    if weight.zero_point != weight.kind.startswith("u"):
        raise StepFailed(
            f"`{weight.name}` has {'a' if weight.zero_point else 'no'} zero point for {weight.kind}"
        )
