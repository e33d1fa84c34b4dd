"""How each weight of a decoder graph is to be stored: what a recipe's options mean, node by node.
Light: the plan asks it, too."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from phipipe.backends.onnxruntime.layout import LM_HEAD
from phipipe.backends.onnxruntime.options import Options
from phipipe.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one weight is stored. ``symmetric`` ⇔ no zero points. Algorithms are onnxruntime's."""

    bits: int
    block_size: int
    symmetric: bool
    accuracy_level: int
    algorithm: str


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A product with a constant matrix ``weight`` [k, n] of ``dtype`` "fp32" or "fp16"."""

    name: str
    weight: str
    k: int
    n: int
    dtype: str = "fp32"


def schemes_of(
    wanted: Sequence[Linear], options: Options, bits: int, layers: int
) -> dict[str, Scheme]:
    """Node name → how its weight is stored; excluded nodes are absent.

    Raises:
        RecipeError: a pattern of ``exclude`` matches no node.
    """
    names = [linear.name for linear in wanted]
    excluded = {name for pattern in options.exclude for name in _matches(pattern, names)}
    raised = raised_nodes(options.mixed, layers) if bits == 4 else set()
    return {
        name: Scheme(
            bits=8 if name in raised else bits,
            block_size=options.block_size,
            symmetric=options.symmetric,
            accuracy_level=options.accuracy_level or 0,
            algorithm=options.algorithm,
        )
        for name in names
        if name not in excluded
    }


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    matches = fnmatch.filter(names, pattern)
    if not matches:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
        raise RecipeError(
            f"`quantize.exclude: {pattern}` matches no node", hint=f"did you mean `{near[0]}`?"
        )
    return matches


def raised_nodes(mixed: str, layers: int) -> set[str]:
    """Nodes that ``mixed`` keeps at 8 bits: llama.cpp's choice for its mixed types, which the
    builder shares."""
    if mixed == "none":
        return set()
    names = {LM_HEAD}
    if mixed == "down":  # as Olive's k_quant_down
        chosen = [
            i
            for i in range(layers)
            if i < layers / 8 or i >= 7 * layers / 8 or (i - layers // 8) % 3 == 2
        ]
        names |= {f"/model/layers.{i}/mlp/down_proj/MatMul" for i in chosen}
    if mixed == "layers":
        eighth = layers / 8
        between = range(round(eighth) + 2, layers, 3)
        chosen = [i for i in range(layers) if i < eighth or i >= 7 * eighth or i in between]
        projections = ("attn/qkv_proj", "attn/v_proj", "mlp/down_proj")
        names |= {
            f"/model/layers.{i}/{projection}/MatMul" for i in chosen for projection in projections
        }
    return names
