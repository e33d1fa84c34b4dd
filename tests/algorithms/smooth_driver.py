"""Runs in the torch toolchain: ``python smooth_driver.py FOLDER`` leaves FOLDER/facts.json, and
FOLDER/loud: the embedded model with weights that stand out, computing the same."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from testing import neighbour_checkpoints, oracle
from testing.drive import answer, message
from testing.family_checkpoints import MEMBERS as PHIS
from testing.family_checkpoints import make as make_phi
from testing.variants import TINY, digest, tied, tokens

from phipipe.algorithms import awq, folds, smooth_run
from phipipe.models import checkpoints, weight_files

NAMES = ("Phi-2", "Llama-3.2-1B", "Qwen2.5-0.5B", "Qwen3-0.6B", "Gemma-3-1B")
PARAMS = {"group": 32, "widen": False}
SHIFT = 4  # binary places by which some numbers of a layer are moved


def weights(folder: Path) -> dict[str, Any]:
    files = weight_files.shards(folder)
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def changed(source: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the checkpoint ``source``, which is one file, with other tensors."""
    shutil.copytree(source, folder)
    tensors = weights(source)
    change(tensors)
    made = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def louder(source: Path) -> Callable[[dict[str, Any]], None]:
    """Make some of what each layer's linears read loud, by its makers: every seventh number."""
    found = folds.of(checkpoints.read(source))

    def change(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            for fold in found:
                if name.endswith(f"{fold.maker}.weight"):
                    rows = slice(fold.first, fold.first + fold.count, 7)
                    tensor[rows] = (tensor[rows] + fold.plus) * 2**SHIFT - fold.plus

    return change


def outliers(tensors: dict[str, Any]) -> None:
    """What stands out, and the model computes the same: loud numbers that are read softly."""
    for i in range(5):
        layer = f"model.layers.{i}"
        for maker, first, reader in (
            ("self_attn.qkv_proj", 384, "self_attn.o_proj"),
            ("mlp.gate_up_proj", None, "mlp.down_proj"),
        ):
            made, read = (tensors[f"{layer}.{name}.weight"] for name in (maker, reader))
            start = len(made) // 2 if first is None else first
            repeats = read.shape[1] // (len(made) - start)
            for number in range(3, len(made) - start, 29):
                made[start + number] *= 2**SHIFT
                for head in range(repeats):
                    at = number if repeats == 1 else _read_at(number, head, repeats)
                    read[:, at] /= 2**SHIFT


def _read_at(number: int, head: int, repeats: int, width: int = 64) -> int:
    return (number // width * repeats + head) * width + number % width


def smooth(root: Path, name: str, source: Path, text: str = "stories", **params: Any) -> Path:
    out = root / f"{name}-smooth"
    out.mkdir(parents=True)
    inputs = {"source": source, "calibration": root / text}
    smooth_run.fold(inputs, out, PARAMS | params)
    return out


def compared(root: Path, name: str, source: Path, **params: Any) -> dict[str, Any]:
    """What smoothing did to a checkpoint."""
    ids = np.load(root / params.get("text", "stories") / "tokens.npy")[0, :96].tolist()
    before, own = digest(source), weights(source)
    made = smooth(root, name, source, **params)
    new = weights(made)
    config, theirs = (json.loads((f / "config.json").read_text("utf-8")) for f in (made, source))
    files = {p.name: p.read_bytes() for p in source.iterdir()}
    expected, actual = oracle.logits(source, ids), oracle.logits(made, ids)
    return {
        "kld": oracle.kld(expected, actual),
        "equal": bool(np.array_equal(expected, actual)),
        "changed": sorted(n for n, t in own.items() if not new[n].float().equal(t.float())),
        "linears": sorted(n for n, t in own.items() if ".layers." in n and t.dim() == 2),
        "dtypes": sorted({str(t.dtype) for t in new.values()}),
        "names": sorted(new) == sorted(own),
        "config": {k: config[k] for k in config if config[k] != theirs.get(k)},
        "files": sorted(p.name for p in made.iterdir() if p.read_bytes() != files.get(p.name)),
        "missing": sorted(files.keys() - {p.name for p in made.iterdir()}),
        "unchanged": digest(source) == before,
    }


def architectures(root: Path) -> dict[str, Any]:
    """Small checkpoints of several layouts, some of whose numbers are loud."""
    facts: dict[str, Any] = {"tiny-phi3": compared(root, "tiny", TINY)}
    for member in (*PHIS, *neighbour_checkpoints.MEMBERS):
        if member.name not in NAMES:
            continue
        plain = root / member.name
        (make_phi if member.name == "Phi-2" else neighbour_checkpoints.make)(member, plain)
        loud = changed(plain, root / f"{member.name}-loud", louder(plain))
        widen = member.name == "Gemma-3-1B"
        facts[member.name] = compared(root, member.name, loud, text="few", widen=widen)
    facts["shards"] = compared(root, "shards", tied(root / "tied"))
    half = changed(TINY, root / "half", lambda t: t.update({n: v.half() for n, v in t.items()}))
    facts["fp16"] = compared(root, "half", half, widen=True)
    return facts


def rounding(root: Path) -> dict[str, float]:
    """Divergences of models whose linears are rounded to 4 bits, from the embedded model."""
    ids = tokens("evaluation.txt", 1, 256)[0].tolist()
    expected = oracle.logits(TINY, ids)
    loud = changed(TINY, root / "loud", outliers)

    def rounded(folder: Path, group: int) -> float:
        def change(tensors: dict[str, Any]) -> None:
            for name, tensor in tensors.items():
                if ".layers." in name and tensor.dim() == 2:
                    whole = tensor.float().numpy()
                    near = awq.rounded(whole, group or whole.shape[1])
                    tensors[name] = torch.from_numpy(near)

        made = changed(folder, root / f"{folder.name}-{group}", change)
        return oracle.kld(expected, oracle.logits(made, ids))

    better = {32: smooth(root, "loud", loud), 0: smooth(root, "loud-rows", loud, group=0)}
    return {
        "same": oracle.kld(expected, oracle.logits(loud, ids)),
        **{f"plain {group}": rounded(loud, group) for group in (32, 0)},
        **{f"smooth {group}": rounded(better[group], group) for group in (32, 0)},
    }


def reproducible(root: Path) -> bool:
    again = root / "again"
    shutil.copytree(root / "stories", again / "stories")
    return digest(smooth(again, "loud", root / "loud")) == digest(root / "loud-smooth")


def refusals(root: Path) -> list[str]:
    """What is said of a model whose activations run over."""

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"] *= 2.0**126

    return message(lambda: smooth(root, "over", changed(TINY, root / "over", change)))


def main(root: Path) -> None:
    windows = tokens("calibration.txt", 8, 128)
    for text, ids in (("stories", windows), ("few", windows % 1000)):  # small vocabularies
        (root / text).mkdir()
        np.save(root / text / "tokens.npy", ids)
    checks: dict[str, Callable[[], object]] = {
        "architectures": lambda: architectures(root),
        "rounding": lambda: rounding(root),
        "reproducible": lambda: reproducible(root),
        "refusals": lambda: refusals(root),
    }
    answer(root / "facts.json", checks)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
