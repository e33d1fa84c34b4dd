"""Runs in the torch toolchain: ``python map_driver.py FOLDER`` leaves FOLDER/facts.json about
precision maps and learned weights."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from testing import lattices, neighbour_checkpoints, oracle
from testing.drive import answer, message
from testing.variants import TINY, digest, tied, tokens

from phipipe.algorithms import lattice
from phipipe.backends import torch as backend
from phipipe.backends.torch import exact, packing
from phipipe.backends.torch.quantize import quantize as quantize_step
from phipipe.backends.torch.verify import verify
from phipipe.models import family, linears

IDS = [int(t) for t in np.random.default_rng(7).integers(4, 900, 48)]
USUAL = {"bits": 4, "algorithm": "rtn", "group_size": 128, "symmetric": True}
MIXTURE = {
    "lm_head": {"bits": 8, "group_size": 64},
    "layers.0.mlp.down_proj": {"bits": 8, "group_size": 32},
    "layers.1.self_attn.qkv_proj": {"bits": 16, "group_size": None},
    "layers.2.mlp.gate_up_proj": {"bits": 4, "group_size": -1},
    "layers.3.self_attn.o_proj": {"bits": 8, "group_size": 128},
}
NARROW = {name: one for name, one in MIXTURE.items() if one["bits"] != 8}
# source, group size, bits that are not the usual ones
LEARNED: dict[str, tuple[str, int, dict[str, int]]] = {
    "tiny": ("tiny", 32, {}),
    "tiny 64": ("tiny", 64, {"layers.1.mlp.down_proj": 8, "embed_tokens": 4, "lm_head": 4}),
    "tiny 128": (
        "tiny",
        128,
        {"layers.1.mlp.down_proj": 16, "embed_tokens": 16, "lm_head": 16},
    ),
    "tiny rows": ("tiny", -1, {"embed_tokens": 16, "lm_head": 16}),
    "tied": ("tied", 32, {}),
    "copied": ("copied", 32, {}),
    "llama": ("llama", 32, {"layers.1.mlp.gate_proj": 8}),
    "qwen": ("qwen", 32, {}),
}


def quantize(
    out: Path,
    source: Path = TINY,
    widths: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    calibration: Path | None = None,
    **options: Any,
) -> Path:
    out.mkdir(parents=True)
    inputs = {"source": source} | ({"weights": weights} if weights else {})
    inputs |= {"calibration": calibration} if calibration else {}
    quantize_step(inputs, out, USUAL | options | ({"widths": widths} if widths else {}))
    return out


def logits(folder: Path) -> Any:
    runtime = backend.open(folder)
    found = runtime.logits(IDS)
    runtime.close()
    return found


def floats(folder: Path) -> dict[str, str]:
    """Matrix → dtype of what is stored in floats."""
    names = {linears.linear_of(key): one for key, one in load_file(folder / FILE).items()}
    return {name: str(one.dtype) for name, one in names.items() if name}


FILE = "model.safetensors"


def learned(root: Path, sources: Mapping[str, Path], case: str) -> dict[str, Any]:
    """How far the runtime is from transformers with the weights that the lattice stands for."""
    source, size, special = LEARNED[case]
    at = root / "learned" / case
    given = sources["tied" if source == "copied" else source]
    widths = lattices.make(given, at, size, special)
    if source in ("tied", "copied", "qwen"):
        del widths["lm_head"]  # a plan has no name for it
    out = quantize(at / "out", sources[source], widths, at / "weights", group_size=size)
    expected, found = oracle.logits(at / "dense", IDS), logits(out)
    return {
        "difference": float(np.abs(found - expected).max()),
        "size": float(np.abs(expected).max()),
        "kld": oracle.kld(expected, found),
        "floats": floats(out) if (out / FILE).is_file() else {},
        "bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
    }


def copied(source: Path, folder: Path) -> Path:
    """A tied checkpoint that holds its head all the same."""
    shutil.copytree(source, folder)
    part = folder / "model-00001-of-00002.safetensors"
    whole = {k: t for path in folder.glob("*.safetensors") for k, t in load_file(path).items()}
    tensors = load_file(part) | {"lm_head.weight": whole["model.embed_tokens.weight"].clone()}
    save_file(tensors, part, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    told = json.loads(index.read_text("utf-8"))
    told["weight_map"]["lm_head.weight"] = part.name
    index.write_text(json.dumps(told), "utf-8")
    return folder


def mixture(root: Path) -> dict[str, Any]:
    """Widths, groups and floats side by side."""
    expected = oracle.logits(TINY, IDS)
    plain = quantize(root / "plain")
    facts: dict[str, Any] = {"kld": {"plain": oracle.kld(expected, logits(plain))}}
    np.save(root / "tokens.npy", tokens("calibration.txt", 16, 64))
    cases: dict[str, dict[str, Any]] = {
        "rtn": {},
        "signround": {"algorithm": "signround", "iterations": 4, "calibration": root},
        "asymmetric": {"symmetric": False, "widths": NARROW},
        "int8": {"bits": 8},
    }
    for name, more in cases.items():
        out = quantize(root / name, **({"widths": MIXTURE} | more))
        facts["kld"][name] = oracle.kld(expected, logits(out))
    facts["config"] = json.loads((root / "rtn" / "config.json").read_text("utf-8"))
    facts["floats"] = floats(root / "rtn")
    facts["bytes"] = (root / "rtn" / FILE).stat().st_size
    facts["read"] = as_read(root / "rtn")
    return facts


def as_read(folder: Path) -> dict[str, list[int]]:
    """Matrix → bits and group size of the layers that auto-round itself makes of the files."""
    import torch
    from transformers import AutoModelForCausalLM

    from phipipe.backends.torch.session import _packed_config

    model = AutoModelForCausalLM.from_pretrained(
        folder, config=_packed_config(folder), dtype=torch.float32
    )
    named = dict(model.named_modules()).items()
    found = {linears.linear_of(f"{name}.weight"): module for name, module in named}
    return {
        name: [int(one.bits), int(one.group_size)]
        for name, one in found.items()
        if name and hasattr(one, "qweight")
    }


def packed() -> dict[str, int]:
    """Of 60 random matrices, how many the parts hold exactly, and in GPTQ's layout by its
    description alone."""
    import torch

    random, found = np.random.default_rng(11), {"decoded": 0, "described": 0}
    for _ in range(60):
        bits, size = int(random.choice([4, 8])), int(random.choice([32, 64, 128]))
        rows, columns = 32 * int(random.integers(1, 5)), size * int(random.integers(1, 4))
        low, high = lattice.limits(bits)
        scales = random.normal(size=(rows, columns // size)).astype(np.float32)
        matrix = lattice.Matrix(
            bits=bits,
            codes=random.integers(low, high + 1, (rows, columns), np.int8),
            scales=lattice.to_scales(scales),
        )
        how = packing.Packing(bits=bits, group_size=size)
        parts = exact.parts("a.weight", matrix, how)
        parts = {name.removeprefix("a."): one for name, one in parts.items()}
        dense = packing.dense(parts, bits, True, parts["scales"].float()).T
        found["decoded"] += dense.equal(torch.from_numpy(matrix.dense()))
        row, column = int(random.integers(rows)), int(random.integers(columns))
        word = int(parts["qweight"][column * bits // 32, row])
        zero = int(parts["qzeros"][column // size, row * bits // 32])
        level = word >> column * bits % 32 & 2**bits - 1
        level -= (zero >> row * bits % 32 & 2**bits - 1) + 1
        found["described"] += level == int(matrix.codes[row, column])
    return found


def same(root: Path) -> bool:
    """A map that says what the options say gives the same files."""
    names = [linears.linear_of(name) for name in packing.shapes(TINY)]
    told = {"bits": 4, "group_size": 128}
    widths = {name: told for name in names if name and linears.layer_of(name) is not None}
    made = (quantize(root / "one"), quantize(root / "other", widths=widths))
    return digest(made[0]) == digest(made[1])


def refused(root: Path) -> dict[str, list[str]]:
    """Weights that are not the lattice's, and files that are not as wide as asked."""
    at = root / "learned" / "tiny"
    widths = lattices.make(TINY, root / "again", 32)
    params = USUAL | {"group_size": 32, "widths": widths}
    changed = lattices.changed(at / "weights", root / "changed")
    narrow = {name: {"bits": 4, "group_size": 64} for name in widths}
    wide = {"lm_head": {"bits": 4, "group_size": 64}}
    mapped = USUAL | {"widths": MIXTURE}
    return {
        "same": message(lambda: verify(TINY, at / "out", params, at / "weights")),
        "other": message(lambda: verify(TINY, at / "out", params, changed)),
        "width": message(lambda: quantize(root / "narrow", widths=narrow, weights=at / "weights")),
        "shape": message(
            lambda: quantize(
                root / "shape", root / "sources" / "llama", widths, at / "weights", group_size=32
            )
        ),
        "mapped": message(lambda: verify(TINY, root / "mixture" / "rtn", mapped)),
        "bits": message(lambda: verify(TINY, root / "mixture" / "rtn", USUAL | {"widths": wide})),
        "plain": message(lambda: verify(TINY, root / "mixture" / "plain", mapped)),
    }


def sources_in(root: Path) -> dict[str, Path]:
    found = {"tiny": TINY, "tied": tied(root / "tied")}
    found["copied"] = copied(found["tied"], root / "copied")
    for name, member in {"llama": "Llama-3.1-8B", "qwen": "Qwen2.5-0.5B"}.items():
        found[name] = root / name
        neighbour_checkpoints.make(next(m for m in family.MEMBERS if m.name == member), found[name])
    return found


def main(root: Path) -> None:
    (root / "mixture").mkdir()
    (root / "sources").mkdir()
    sources = sources_in(root / "sources")
    checks: dict[str, Callable[[], object]] = {
        f"learned {case}": partial(learned, root, sources, case) for case in LEARNED
    }
    checks |= {
        "mixture": lambda: mixture(root / "mixture"),
        "same": lambda: {"files": same(root / "same")},
        "packed": packed,
        "refused": lambda: refused(root),
    }
    if len(sys.argv) > 2:
        checks = {name: check for name, check in checks.items() if name.startswith(sys.argv[2])}
    answer(root / "facts.json", checks)


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        main(Path(sys.argv[1]))
