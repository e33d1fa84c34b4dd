"""Runs in the onnxruntime toolchain: ``python map_driver.py FOLDER`` leaves FOLDER/facts.json about
precision maps and learned weights."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from testing import lattices, neighbour_checkpoints, onnx_facts, oracle
from testing.drive import answer, message
from testing.variants import TINY, tied

from phipipe.algorithms.lattice import Lattice
from phipipe.backends import onnxruntime as backend
from phipipe.backends.onnxruntime import convert as conversion
from phipipe.backends.onnxruntime import exact, graph, layout, rounding
from phipipe.backends.onnxruntime import quantize as quantization
from phipipe.backends.onnxruntime.schemes import matrix_of
from phipipe.models import family

IDS = [int(t) for t in np.random.default_rng(7).integers(4, 900, 48)]
# Options, and the same as a map.
PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {"layers.*": 4, "lm_head": 4}),
    "head": ({"mixed": "head"}, {"lm_head": 8}),
    "layers": (
        {"mixed": "layers"},
        {f"layers.{i}.{m}": 8 for i in (0, 3) for m in ("mlp.down_proj", "self_attn.qkv_proj")}
        | {"lm_head": 8},
    ),
    "down": ({"mixed": "down"}, {f"layers.{i}.mlp.down_proj": 8 for i in (0, 2)} | {"lm_head": 8}),
    "exclude": ({"exclude": ["*/layers.1/mlp/down_proj/*"]}, {"layers.1.mlp.down_proj": 16}),
    "k_quant": (
        {"mixed": "head", "algorithm": "k_quant", "block_size": 16},
        {"lm_head": 8},
    ),
    "excluded": (
        {"mixed": "layers", "exclude": ["*/layers.0/mlp/down_proj/*"]},
        {f"layers.{i}.self_attn.qkv_proj": 8 for i in (0, 3)}
        | {"layers.0.mlp.down_proj": 16, "layers.3.mlp.down_proj": 8, "lm_head": 8},
    ),
    "embeddings": ({"embeddings": "quantized"}, {"embed_tokens": 4}),
}


def convert(source: Path, out: Path, **where: Any) -> Path:
    out.mkdir(parents=True)
    conversion.convert({"source": source}, out, {"config_patch": {}, **where})
    return out


def quantize(
    model: Path,
    out: Path,
    widths: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    source: Path | None = None,
    **options: Any,
) -> Path:
    out.mkdir(parents=True)
    params = onnx_facts.asked(model, "int4", **{"accuracy_level": 1, **options})
    params["widths"] |= widths or {}
    inputs = {"model": model, **({"weights": weights} if weights else {})}
    inputs |= {"source": source} if source else {}
    quantization.quantize(inputs, out, params)
    return out


def width(bits: int, group_size: int | None = None) -> dict[str, Any]:
    return {"bits": bits, "group_size": group_size}


def presets(root: Path) -> dict[str, list[str]]:
    """Names of the files that differ between a preset and the map that says the same."""
    names = [name for name in map(_matrix, graph.linears(graph.load(root / "tiny"))) if name]
    made = {}
    for name, (options, told) in PRESETS.items():
        widths = {}
        for pattern, bits in told.items():
            hit = [n for n in names if n.startswith(pattern.rstrip("*"))] or [pattern]
            widths |= dict.fromkeys(hit, width(bits))
        plain = {k: v for k, v in options.items() if k in ("algorithm", "block_size")}
        first = quantize(root / "tiny", root / "presets" / name, **options)
        second = quantize(root / "tiny", root / "maps" / name, widths, **plain)
        made[name] = sorted(
            p.name for p in first.iterdir() if p.read_bytes() != (second / p.name).read_bytes()
        )
    return made


def _matrix(linear: Any) -> str | None:
    return matrix_of(linear.name)


def mixture(root: Path) -> dict[str, Any]:
    """Widths, blocks and floats side by side, an embedding at 8 bits among them."""
    widths = {
        "embed_tokens": width(8, 64),
        "lm_head": width(8, 128),
        "layers.0.self_attn.qkv_proj": width(16),
        "layers.1.self_attn.o_proj": width(4, 16),
        "layers.2.mlp.gate_up_proj": width(8, 256),
    }
    expected = oracle.logits(TINY, IDS)
    facts: dict[str, Any] = {"kld": {}}
    rounding.SLICE, whole = 5000, rounding.SLICE
    for name, more in {"plain": {}, "asymmetric": {"symmetric": False}}.items():
        out = quantize(root / "tiny", root / "mixture" / name, widths, **more)
        facts["kld"][name] = oracle.kld(expected, logits(out))
    rounding.SLICE = whole
    facts["linears"] = onnx_facts.describe(root / "mixture" / "plain")["linears"]
    alone = quantize(root / "tiny", root / "mixture" / "alone")
    facts["kld"]["alone"] = oracle.kld(expected, logits(alone))
    nodes = {n.name: graph.attributes(n) for n in graph.load(root / "mixture" / "plain").graph.node}
    facts["blocks"] = {
        name: [nodes[name]["bits"], nodes[name]["block_size"]]
        for name in nodes
        if nodes[name].get("block_size") not in (None, 32)
    }
    facts["lost"] = message(
        lambda: quantize(root / "tiny", root / "lost", {"layers.9.mlp.down_proj": width(8)})
    )
    facts["apart"] = message(
        lambda: quantize(root / "llama", root / "apart", {"layers.0.self_attn.q_proj": width(8)})
    )
    return facts


def logits(folder: Path) -> Any:
    runtime = backend.open(folder)
    found = runtime.logits(IDS)
    runtime.close()
    return found


def learned(root: Path, sources: Mapping[str, Path]) -> dict[str, Any]:
    """How far the runtime is from transformers with the weights that the lattice stands for."""
    facts: dict[str, Any] = {}
    cases: dict[str, tuple[str, int, dict[str, int]]] = {
        "tiny": ("tiny", 32, {}),
        "tiny 64": ("tiny", 64, {"layers.1.mlp.down_proj": 8, "embed_tokens": 4}),
        "tiny 128": ("tiny", 128, {"layers.1.mlp.down_proj": 16, "embed_tokens": 16}),
        "tied": ("tied", 32, {}),
        "tied 4": ("tied", 32, {"embed_tokens": 4}),
        "llama": ("llama", 32, {"layers.1.mlp.gate_proj": 8}),
    }
    for name, (source, size, special) in cases.items():
        at = root / "learned" / name
        widths = lattices.make(sources[source], at, size, special)
        expected = oracle.logits(at / "dense", IDS)
        told = {"weights": at / "weights", "block_size": size}
        out = quantize(root / source, at / "onnx", widths, **told)
        quick = quantize(root / source, at / "quick", widths, **told, accuracy_level=4)
        facts[name] = {
            "difference": float(np.abs(logits(out) - expected).max()),
            "size": float(np.abs(expected).max()),
            "kld": oracle.kld(expected, logits(out)),
            "int8_kld": oracle.kld(expected, logits(quick)),
            "linears": onnx_facts.describe(out)["linears"],
        }
    return facts


def elsewhere(root: Path, sources: Mapping[str, Path]) -> dict[str, Any]:
    """Graphs of other kinds hold the lattice: fp16, with queries, keys and values apart, and linked
    to the checkpoint."""
    at = root / "learned" / "tiny"
    widths = {
        name: width(8 if "." not in name else 4, 32) for name in Lattice(at / "weights").names
    }
    told: dict[str, Any] = {"weights": at / "weights"}
    facts: dict[str, Any] = {}
    for provider in ("cuda", "dml"):
        model = convert(TINY, root / provider, provider=provider, io_dtype="fp16")
        out = quantize(model, root / "elsewhere" / provider, widths, **told)
        facts[provider] = onnx_facts.describe(out)["linears"]
        facts[f"{provider} kld"] = oracle.kld(oracle.logits(at / "dense", IDS), logits(out))
    linked = convert(TINY, root / "linked", linked=True)
    out = quantize(linked, root / "elsewhere" / "linked", widths, source=TINY, **told)
    facts["linked"] = [
        (out / name).read_bytes() == (at / "onnx" / name).read_bytes()
        for name in (layout.MODEL, layout.DATA)
    ]
    return facts


def refused(root: Path) -> dict[str, list[str]]:
    """Weights that are not the lattice's, and lattices that are not as wide as asked."""
    at = root / "learned" / "tiny"
    other = Lattice(lattices.changed(at / "weights", root / "other"))
    names = graph.linears(graph.load(root / "tiny"))
    sizes = {linear.name: linear.n for linear in names}
    narrow = {name: width(4, 64) for name in Lattice(at / "weights").names}
    return {
        "same": message(lambda: exact.check(at / "onnx", Lattice(at / "weights"), sizes)),
        "other": message(lambda: exact.check(at / "onnx", other, sizes)),
        "width": message(
            lambda: quantize(root / "tiny", root / "narrow", narrow, weights=at / "weights")
        ),
    }


def main(root: Path) -> None:
    llama = root / "sources" / "llama"
    member = next(m for m in family.MEMBERS if m.name == "Llama-3.1-8B")
    neighbour_checkpoints.make(member, llama)
    sources = {"tiny": TINY, "tied": tied(root / "sources" / "tied"), "llama": llama}
    for name, source in sources.items():
        convert(source, root / name)
    checks: dict[str, Callable[[], object]] = {
        "presets": lambda: presets(root),
        "mixture": lambda: mixture(root),
        "learned": lambda: learned(root, sources),
        "elsewhere": lambda: elsewhere(root, sources),
        "refused": lambda: refused(root),
    }
    answer(root / "facts.json", checks)


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        main(Path(sys.argv[1]))
