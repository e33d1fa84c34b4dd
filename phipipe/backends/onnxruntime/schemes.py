"""How each weight of a decoder graph is to be stored: what a recipe's options mean, node by node.
Light: the plan asks it, too."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from phipipe.backends import widths
from phipipe.backends.base import Job
from phipipe.backends.onnxruntime.layout import LM_HEAD
from phipipe.backends.onnxruntime.options import Options
from phipipe.backends.widths import FLOAT_BITS, Stored, Width
from phipipe.errors import RecipeError, StepFailed
from phipipe.models import linears


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


def matrix_of(node: str) -> str | None:
    """The name in ``models.linears`` of the matrix that the product ``node`` reads."""
    stem = node.strip("/").removesuffix("/MatMul").replace("/attn/", "/self_attn/")
    return linears.linear_of(stem.replace("/", ".") + ".weight")


def schemes_of(
    wanted: Sequence[Linear],
    options: Options,
    bits: int,
    mapped: Mapping[str, Stored] = MappingProxyType({}),
) -> dict[str, Scheme]:
    """Node name → how its weight is stored; nodes that stay floats are absent. ``mapped`` is what
    ``widths_of`` says.

    Raises:
        RecipeError: a pattern of ``exclude`` matches no node.
        StepFailed: ``mapped`` names a matrix that the graph does not have.
    """
    names = [linear.name for linear in wanted]
    excluded = {name for pattern in options.exclude for name in _matches(pattern, names)}
    usual = usual_scheme(options, bits)
    schemes = {name: usual for name in names if name not in excluded}
    told = _told(names, mapped)
    schemes |= {name: mapped_scheme(usual, stored) for name, stored in told.items()}
    floats = [name for name, stored in told.items() if stored.bits == FLOAT_BITS]
    return {name: schemes[name] for name in names if name in schemes and name not in floats}


def usual_scheme(options: Options, bits: int) -> Scheme:
    """What all weights get that no option makes an exception of."""
    return Scheme(
        bits=bits,
        block_size=options.block_size,
        symmetric=options.symmetric,
        accuracy_level=options.accuracy_level or 0,
        algorithm=options.algorithm,
    )


def mapped_scheme(usual: Scheme, stored: Width) -> Scheme:
    """``usual`` as wide as the map says."""
    return replace(usual, bits=stored.bits, block_size=stored.group_size or usual.block_size)


def _told(names: Sequence[str], mapped: Mapping[str, Stored]) -> dict[str, Width]:
    """Node name → its width, for those that ``mapped`` says something of."""
    matrices = {name: matrix_of(name) or name for name in names}
    known = {linears.EMBEDDING, *matrices.values()}
    known |= {linears.joined(name) or name for name in known}
    lost = [name for name in mapped if not {name, linears.joined(name)} & known]
    if lost:
        raise StepFailed(f"the graph has no matrix `{lost[0]}`, which the map names")
    found = {node: widths.of(name, mapped) for node, name in matrices.items()}
    return {node: stored for node, stored in found.items() if isinstance(stored, Width)}


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    matches = fnmatch.filter(names, pattern)
    if not matches:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
        raise RecipeError(
            f"`quantize.exclude: {pattern}` matches no node", hint=f"did you mean `{near[0]}`?"
        )
    return matches


def widths_of(job: Job[Options]) -> dict[str, Stored]:
    """Matrix → its width, groups filled in, of those that the map names, and of those that the
    preset ``mixed`` keeps at 8 bits where the map says nothing.

    A tied head is named, too: after a rotation it is a matrix of its own.
    """
    size = job.options.block_size
    found: dict[str, Stored] = {
        name: Width(bits=one.bits, group_size=one.group_size or size)
        for name, one in job.widths.items()
        if isinstance(one, Width)
    }
    if job.checkpoint.tied and linears.EMBEDDING in found:
        found[linears.HEAD] = found[linears.EMBEDDING]
    raised = _raised(job) if job.recipe.precision == "int4" else ()
    wide = {name: Width(bits=8, group_size=size) for name in raised if not widths.of(name, found)}
    return found | wide


def _raised(job: Job[Options]) -> list[str]:
    """Matrices that ``mixed`` keeps at 8 bits, without those that ``exclude`` names."""
    values = "v_proj" if job.api == "directml" else "qkv_proj"  # whose graphs have it apart
    nodes = sorted(raised_nodes(job.options.mixed, job.checkpoint.layers, values))
    if job.checkpoint.model_type == "phi":  # its down projection is `fc2`: the builder passes it by
        nodes = [node for node in nodes if "/mlp/" not in node]
    excluded = {node for pattern in job.options.exclude for node in fnmatch.filter(nodes, pattern)}
    return [name for node in nodes if node not in excluded and (name := matrix_of(node))]


def raised_nodes(mixed: str, layers: int, values: str = "qkv_proj") -> set[str]:
    """Nodes that ``mixed`` keeps at 8 bits: llama.cpp's choice for its mixed types, which the
    builder shares. ``values``: the matrix of attention's values."""
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
        projections = (f"attn/{values}", "mlp/down_proj")
        names |= {
            f"/model/layers.{i}/{projection}/MatMul" for i in chosen for projection in projections
        }
    return names
