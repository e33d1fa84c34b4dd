"""Runs in the mlx toolchain: ``python widths_driver.py FOLDER`` leaves FOLDER/facts.json about maps
and learned codes.

FOLDER holds what the torch toolchain made before: the checkpoints ``source`` and ``tied``, and of
each a lattice and the logits of the values that it stands for (see the test's fixture).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from testing import oracle
from testing.drive import answer, message

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.backends import mlx as backend
from phipipe.backends import widths
from phipipe.backends.base import Job
from phipipe.backends.mlx import codes, sizes
from phipipe.backends.mlx.convert import convert, stored
from phipipe.backends.mlx.quantize import check_named, quantize
from phipipe.backends.widths import Width
from phipipe.models import checkpoints
from phipipe.models.checkpoint import Checkpoint

MIXED = {
    "layers.0.*.down_proj": {"bits": 16},
    "layers.*.down_proj": {"bits": 6, "group_size": 32},
    "embed_tokens": {"bits": 8, "group_size": 128},
    "layers.1.*": {"bits": 3},
    "lm_head": {"bits": 5},
}
MAPS: dict[str, dict[str, Any]] = {
    "mixed": {"map": MIXED},
    "over-mixed": {"map": MIXED, "mixed": "mixed_4_6"},
    "over-mxfp4": {"map": MIXED, "mode": "mxfp4"},
}


def job(
    checkpoint: Checkpoint, learned: Mapping[str, tuple[int, int]] | None = None, **options: Any
) -> Job[backend.Options]:
    """As the planner would make it; ``learned``: the widths of the matrices in a lattice."""
    weights = SimpleNamespace(learn="round" if learned else None, group_size=32)
    recipe: Any = SimpleNamespace(precision=options.pop("precision", "int4"), weights=weights)
    chosen = backend.Options.model_validate(options)
    named = widths.resolve(chosen.map, checkpoint)
    named |= {n: Width(bits=b, group_size=s) for n, (b, s) in (learned or {}).items()}  # type: ignore[arg-type]
    return Job(recipe, chosen, checkpoint, widths=named)


def build(root: Path, name: str, given: Job[backend.Options], source: str = "source") -> Path:
    """All steps that are planned; those of a large model start from the checkpoint."""
    made = {"source": root / source, "weights": root / f"{source}-lattice"}
    for step in backend.steps(given):
        out = root / name / step.name
        out.mkdir(parents=True)
        run = {"convert": convert, "quantize": quantize}[step.name]
        run({key: made[place] for key, place in step.needs.items()}, out, step.params)
        made[step.name] = out
    return made["quantize"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def spelled(root: Path) -> dict[str, bool]:
    known = checkpoints.read(root / "source")
    whole = {"*": {"bits": 4}}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "int4": ({}, {"map": whole}),
        "6-bit": ({"bits": 6}, {"bits": 6, "map": {"layers.*": {"bits": 6, "group_size": 64}}}),
        "int8": ({"precision": "int8"}, {"precision": "int8", "map": {"*": {"bits": 8}}}),
    }
    facts = {
        name: files(build(root, name, job(known, **plain)))
        == files(build(root, f"{name}-map", job(known, **mapped)))
        for name, (plain, mapped) in cases.items()
    }
    for name, (low, high) in sizes.MIXED.items():  # whose config.json names every matrix
        wide = {f"layers.{i}.*.{m}": high for i in (2, 4) for m in ("qkv_proj", "down_proj")}
        first = build(root, name, job(known, mixed=name))
        second = build(root, f"{name}-map", job(known, map={**wide, "lm_head": high, "*": low}))
        facts[name] = weights(first) == weights(second)
    return facts


def weights(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def held(folder: Path) -> dict[str, list[int]]:
    """Bits and group size by matrix; 16 and 0 of floats."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    usual, tensors, found = config["quantization"], stored(folder), {}
    for key in tensors:
        name = codes.matrix_of(key.removesuffix(".weight")) if key.endswith(".weight") else None
        if name and f"{key.removesuffix('.weight')}.scales" in tensors:
            own = usual.get(key.removesuffix(".weight"), usual)
            found[name] = [own["bits"], own["group_size"]]
        elif name:
            found[name] = [16, 0]
    return found


def maps(root: Path) -> dict[str, Any]:
    facts = {}
    known = checkpoints.read(root / "source")
    for name, options in MAPS.items():
        given = job(known, **options)
        out = build(root, name, given)
        found = held(out)
        facts[name] = {
            "down": [found[f"layers.{i}.mlp.down_proj"] for i in range(3)],
            "qkv": [found[f"layers.{i}.self_attn.qkv_proj"] for i in range(3)],
            "ends": [found["embed_tokens"], found["lm_head"]],
            "kld": divergence(root, "original", out),
            "size": [
                backend.steps(given)[-1].output_bytes,
                sum(path.stat().st_size for path in out.glob("*.safetensors")),
            ],
        }
    return facts


def divergence(root: Path, expected: str, folder: Path) -> float:
    runtime = backend.open(folder)
    found = runtime.logits(json.loads((root / "ids.json").read_text("utf-8")))
    runtime.close()
    return oracle.kld(np.load(root / f"{expected}.npy"), found)


def learned(root: Path) -> dict[str, float]:
    """How far the model is from transformers on the values that the codes stand for, in both dtypes
    that scales may have, and straight from the checkpoint."""
    facts = {}
    cases: dict[str, tuple[str, dict[str, Any], bool]] = {
        "bfloat16": ("source", {}, False),
        "float16": ("source", {"dtype": "float16"}, False),
        "direct": ("source", {}, True),
        "tied": ("tied", {}, False),
    }
    for name, (source, options, large) in cases.items():
        known, whole = checkpoints.read(root / source), Lattice(root / f"{source}-lattice")
        named = {one: whole.width(one) for one in whole.names}
        if source == "source":
            options = {**options, "map": {"layers.0.mlp.down_proj": {"bits": 16}}}
        known = replace(known, parameters=2 * 10**9) if large else known
        out = build(root, f"learned-{name}", job(known, named, **options), source)
        facts[name] = divergence(root, f"{source}-dense", out)
    return facts


def random(root: Path) -> float:
    """The largest difference of what MLX makes of random codes from code × scale."""
    numbers, worst = np.random.default_rng(1), 0.0
    for bits in (4, 8):
        for size in (32, 64, 128):
            low, high = lattice.limits(bits)
            matrix = Matrix(
                bits=bits,
                codes=numbers.integers(low, high + 1, (24, 256)).astype(np.int8),
                scales=lattice.to_scales(numbers.normal(0, 0.1, (24, 256 // size)).astype("f4")),
            )
            for dtype in (mx.float16, mx.bfloat16):
                words, *pair = codes.affine(matrix, dtype)
                wide = [one.astype(mx.float32) for one in pair]
                dense = mx.dequantize(words, *wide, group_size=size, bits=bits)
                worst = max(worst, float(np.abs(np.array(dense) - matrix.dense()).max()))
    return worst


def failures(root: Path) -> dict[str, list[str]]:
    """What is said of files that hold something else than was learned."""
    tensors = stored(root / "learned-bfloat16" / "quantize")
    whole = Lattice(root / "source-lattice")
    one = min(whole.names)

    def other(name: str, matrix: Matrix, key: str = one) -> list[str]:
        folder = root / f"other-{name}"
        folder.mkdir()
        lattice.write(folder, 0, {key: matrix})
        return message(lambda: codes.check(tensors, Lattice(folder)))

    changed, scales, bits = whole[one].codes.copy(), whole[one].scales.copy(), whole[one].bits
    changed[-1, -1] ^= 1
    scales[-1, -1] *= 2
    return {
        "fine": message(lambda: codes.check(tensors, whole)),
        "codes": other("codes", Matrix(bits=bits, codes=changed, scales=whole[one].scales)),
        "scales": other("scales", Matrix(bits=bits, codes=whole[one].codes, scales=scales)),
        "lost": other("lost", whole[one], "layers.9.mlp.down_proj"),
        "named": message(lambda: check_named(["model.lm_head"], {"layers.9.mlp.up_proj": [4, 32]})),
    }


def main(root: Path) -> None:
    checks = (spelled, maps, learned, random, failures)
    answer(root / "facts.json", {check.__name__: partial(check, root) for check in checks})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
