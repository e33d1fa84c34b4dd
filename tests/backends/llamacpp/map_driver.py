"""Precision maps and learned weights in GGUFs.

    python map_driver.py FOLDER torch|llamacpp

In the torch toolchain: makes checkpoints, lattices and outlines of GGUFs. Then in llama.cpp's: what
becomes of them. Each writes ``FOLDER/<toolchain>.json``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from testing import gguf_steps, oracle
from testing.drive import answer, message

from phipipe.backends import llamacpp
from phipipe.backends.llamacpp.names import tensor_of
from phipipe.hub import take

TINY = take.BUILTIN_MODELS["tiny-phi3"]
IDS = [int(t) for t in np.random.default_rng(7).integers(4, 900, 48)]
PHI, NEIGHBOURS = ("Phi-2",), ("Llama-3.2-1B", "Qwen2.5-0.5B", "Mistral-7B-v0.3")
# Source, group size, matrices with other bits than usual.
CASES: dict[str, tuple[str, int, dict[str, int]]] = {
    "tiny": ("tiny", 32, {}),
    "tiny 64": ("tiny", 64, {"layers.1.mlp.down_proj": 8, "embed_tokens": 4, "lm_head": 4}),
    "tiny 128": ("tiny", 128, {"layers.1.mlp.down_proj": 16, "embed_tokens": 16}),
    **{name: (name, 32, {}) for name in (*PHI, *NEIGHBOURS)},
}
# Options, and a map that says the same, by the ends of names.
PRESETS: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any]]] = {
    "tensors": ({"tensors": [["ffn_down", "Q8_0"]]}, {"down_proj": "Q8_0"}, {}),
    "ends": (
        {"output_type": "Q6_K", "embedding_type": "Q5_0"},
        {"lm_head": "Q6_K", "embed_tokens": "Q5_0"},
        {},
    ),
    "first": (
        {"tensors": [["ffn_down", "Q6_K"], ["ffn_up", "Q5_K"]]},
        {"down_proj": "Q6_K"},
        {"tensors": [["ffn_down", "Q8_0"], ["ffn_up", "Q5_K"]]},
    ),
}


def with_torch(root: Path) -> dict[str, Any]:
    from testing import family_checkpoints, lattices, neighbour_checkpoints

    from phipipe.models import family

    sources = {"tiny": TINY}
    for name in (*PHI, *NEIGHBOURS):
        member = next(m for m in family.MEMBERS if m.name == name)
        maker = family_checkpoints if name in PHI else neighbour_checkpoints
        sources[name] = root / "sources" / name
        maker.make(member, sources[name])
    for name, source in sources.items():
        outlined(source, root / "own" / name, "BF16")
    for name, (key, size, special) in CASES.items():
        at = root / "learned" / name
        widths = lattices.make(sources[key], at, size, special)
        (at / "widths.json").write_text(json.dumps(widths))
        np.save(at / "logits.npy", oracle.logits(at / "dense", IDS))
        outlined(at / "dense", at / "wide", "F32")
    lattices.changed(root / "learned" / "tiny" / "weights", root / "other")
    return {}


def outlined(source: Path, out: Path, kind: str) -> None:
    clean = out.parent / f".{out.name}-source"
    shutil.copytree(source, clean, ignore=shutil.ignore_patterns("*.md", "LICENSE*"))
    gguf_steps.outline(clean, out, kind)


def quantize(model: Path, out: Path, kind: str = "Q4_0", **told: Any) -> Path:
    """``model``: an outline, whose checkpoint lies beside it."""
    source = told.pop("source", model.parent / f".{model.name}-source")
    inputs = {"weights": told.pop("weights")} if "weights" in told else {}
    return gguf_steps.quantize(model, source, out, kind, inputs, **told)


def kinds(folder: Path) -> dict[str, str]:
    from phipipe.backends.llamacpp.header import tensors

    return {t.name: t.type for t in tensors(folder / "model.gguf") if len(t.shape) > 1}


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.gguf").read_bytes()).hexdigest()


def presets(root: Path) -> dict[str, bool]:
    """Whether a preset and the map that says the same give the same file."""
    matrices = json.loads((root / "learned" / "tiny" / "widths.json").read_text())
    own, same = root / "own" / "tiny", {}
    for name, (options, told, rest) in PRESETS.items():
        widths = {m: kind for m in matrices for end, kind in told.items() if m.endswith(end)}
        first = quantize(own, root / "presets" / name, **options)
        second = quantize(own, root / "maps" / name, widths=widths, **rest)
        same[name] = digest(first) == digest(second)
    everything = dict.fromkeys(matrices, "Q4_0")
    pure = quantize(own, root / "presets" / "pure", pure=True, output_type="Q4_0")
    same["pure"] = digest(pure) == digest(quantize(own, root / "maps" / "pure", widths=everything))
    return same


def mixture(root: Path) -> dict[str, Any]:
    widths = {
        "layers.0.self_attn.qkv_proj": "BF16",
        "layers.1.mlp.gate_up_proj": "Q6_K",
        "embed_tokens": "Q8_0",
        "lm_head": "Q5_0",
    }
    out = quantize(root / "own" / "tiny", root / "mixture", "Q4_K_M", widths=widths)
    found = kinds(out)
    lost = {"layers.9.mlp.down_proj": "Q8_0"}
    tied = quantize(
        root / "own" / "Llama-3.2-1B",
        root / "tied",
        widths={"embed_tokens": "Q8_0"},
        output_type="Q6_K",
    )
    return {
        "kinds": {name: found[tensor_of(name)] for name in widths},
        "tied": kinds(tied)["token_embd.weight"],
        "lost": message(lambda: quantize(root / "own" / "tiny", root / "lost", widths=lost)),
    }


def logits(folder: Path) -> Any:
    runtime = llamacpp.open(folder)
    found = runtime.logits(IDS)
    runtime.close()
    return found


def types(at: Path) -> dict[str, str]:
    named = {4: "Q4_0", 8: "Q8_0", 16: "BF16"}
    told = json.loads((at / "widths.json").read_text())
    return {name: named[width["bits"]] for name, width in told.items()}


def learned(root: Path) -> dict[str, Any]:
    """How far llama.cpp is from transformers with the weights that the lattice stands for: as
    learned, and in fp32."""
    facts = {}
    for name, (key, _, _) in CASES.items():
        at, own = root / "learned" / name, root / "own" / key
        source = TINY if key == "tiny" else root / "sources" / key
        widths = types(at)
        if '"output.weight"' not in (own / "outline.json").read_text():
            widths.pop("lm_head")
        told = {"weights": at / "weights", "source": source, "widths": widths}
        out = quantize(own, at / "gguf", **told)
        floats = gguf_steps.convert(at / "wide", at / ".wide-source", at / "floats", "F32")
        expected, wide = np.load(at / "logits.npy"), logits(floats)
        facts[name] = {
            "kld": oracle.kld(expected, logits(out)),
            "wide_kld": oracle.kld(expected, wide),
            "size": float(np.abs(expected).max()),
            "right": kinds(out) == {tensor_of(n): kind for n, kind in widths.items()},
            "settings": settings(out / "model.gguf")
            == {**settings(own / "outline.gguf"), "general.file_type": 2},
        }
    return facts


def settings(path: Path) -> dict[str, Any]:
    import gguf

    reader = gguf.GGUFReader(path)
    told = {name: field.contents() for name, field in reader.fields.items()}
    return {name: value for name, value in told.items() if not name.startswith("GGUF.")}


def refused(root: Path) -> dict[str, Any]:
    """A conversion that mixes layers up, and weights that are not the lattice's."""
    from phipipe.algorithms.lattice import Lattice
    from phipipe.backends.llamacpp import learned as writer
    from phipipe.backends.llamacpp.rows import Outline

    at, own = root / "learned" / "tiny", root / "own" / "tiny"
    told = {"weights": at / "weights", "widths": types(at), "source": TINY}
    mixed = shutil.copytree(own, root / "mixed")
    text = (mixed / "outline.json").read_text()
    o_proj = "model.layers.{}.self_attn.o_proj.weight"
    (mixed / "outline.json").write_text(text.replace(o_proj.format(0), o_proj.format(1)))
    same, other = (
        writer._placed(Outline(own, TINY), Lattice(folder), TINY)
        for folder in (at / "weights", root / "other")
    )
    made = at / "gguf" / "model.gguf"
    return {
        "checkpoint": message(lambda: quantize(mixed, root / "wrong", **told)),
        "same": message(lambda: writer.check(made, same)),
        "other": message(lambda: writer.check(made, other)),
    }


def main(root: Path, toolchain: str) -> None:
    if toolchain == "torch":
        answer(root / "torch.json", {"made": lambda: with_torch(root)})
        return
    checks = {"presets": presets, "mixture": mixture, "learned": learned, "refused": refused}
    calls = {name: lambda check=check: check(root) for name, check in checks.items()}
    answer(root / "llamacpp.json", calls)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
