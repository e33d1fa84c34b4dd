"""Runs in the torch toolchain: ``python distil_driver.py FOLDER`` leaves FOLDER/facts.json about
scales that are trained."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from testing.broken_layers import said_of_nan
from testing.drive import answer
from testing.variants import TINY, tokens
from transformers import AutoModelForCausalLM

from phipipe.algorithms import distil, lattice, learn
from phipipe.algorithms.lattice import Lattice
from phipipe.models import linears

WINDOW, WINDOWS, HELD = 64, 48, 8
distil.TOGETHER = 512  # six moves a pass


def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def learned(root: Path) -> Path:
    """Weights rounded to nearest: what is to be won is most there."""
    out = root / "weights"
    out.mkdir()
    named = (linears.linear_of(name) for name, _ in model().named_parameters())
    widths = {name: [4 if "layers" in name else 8, 32] for name in named if name}
    learn.learn({"source": TINY}, out, {"learn": "round", "widths": widths})
    return out


def distilled(root: Path, name: str) -> Path:
    out = root / name
    out.mkdir(exist_ok=True)
    inputs = {name: root / name for name in ("weights", "calibration", "held-out")}
    distil.distil({"source": TINY, **inputs}, out, {})
    return out


def logits(folder: Path | None, windows: torch.Tensor) -> torch.Tensor:
    """Log probabilities of the original, or with the weights in ``folder``."""
    whole, stored = model(), Lattice(folder) if folder else None
    with torch.inference_mode():
        for key, weight in whole.named_parameters():
            name = linears.linear_of(key)
            if stored and name in stored:
                weight.copy_(torch.from_numpy(stored[name].dense()))
        scores: torch.Tensor = torch.log_softmax(whole(input_ids=windows).logits.double(), -1)
    return scores


def divergences(root: Path, windows: torch.Tensor) -> dict[str, float]:
    """Before and after, of the whole models."""
    original = logits(None, windows)
    return {
        name: float((original.exp() * (original - logits(root / name, windows))).sum(-1).mean())
        for name in ("weights", "distilled")
    }


def codes(root: Path) -> dict[str, Any]:
    """What is the same before and after, and what scales have become."""
    before, after = Lattice(root / "weights"), Lattice(root / "distilled")
    moved, same_codes, on_lattice = set(), True, True
    for name in before.names:
        old, new = before[name], after[name]
        same_codes = same_codes and np.array_equal(old.codes, new.codes)
        again = lattice.to_scales(new.scales.astype(np.float32))
        on_lattice = on_lattice and np.array_equal(again, new.scales)
        if not np.array_equal(old.scales, new.scales):
            moved.add(name)
    return {
        "codes": same_codes,
        "lattice": on_lattice,
        "moved": sorted(moved),
        "names": [sorted(before.names), sorted(after.names)],
        "computed": after.computed_digest() == after.digest,
        "files": sorted(path.name for path in (root / "distilled").iterdir()),
    }


def slopes(root: Path) -> dict[str, float]:
    """The gradients that the scales of a few matrices are moved against, beside those of the whole
    model's by autograd: the largest difference, as a share of the largest gradient."""
    seen: dict[str, torch.Tensor] = {}
    move, training = distil._Scales.move, distil._Training

    def noted(scales: Any, gradient: torch.Tensor, codes: torch.Tensor, *_: Any) -> None:
        slope = (gradient * codes).view(*scales.learned.shape, -1).sum(-1)
        seen[next(n for n, one in run._student.scales.items() if one is scales)] = slope

    layers, stored = distil.Layerwise(TINY), Lattice(root / "weights")
    distil._Scales.move = noted  # type: ignore[method-assign, assignment]
    try:
        with torch.no_grad():
            text = distil._Text.of(layers, root / "held-out")
            run = training(layers, stored, text, text, root / "none.npz")
            run._move(text, 0.0, 1)
    finally:
        distil._Scales.move = move  # type: ignore[method-assign]
    windows = torch.from_numpy(np.load(root / "held-out" / "tokens.npy").astype(np.int64))
    whole, scales = model().requires_grad_(False), {}
    weights = {}
    for key, weight in whole.named_parameters():
        name = linears.linear_of(key)
        if name not in stored:
            continue
        matrix = stored[name]
        scales[name] = torch.from_numpy(matrix.scales.astype(np.float32)).requires_grad_()
        groups = torch.from_numpy(matrix.codes).float().view(*matrix.scales.shape, -1)
        weights[key] = (groups * scales[name][..., None]).view(weight.shape)
    given = torch.func.functional_call(whole, weights, (), {"input_ids": windows}).logits
    original = logits(None, windows).float()
    loss = (original.exp() * (original - given.log_softmax(-1))).sum(-1).mean()
    found = dict(zip(scales, torch.autograd.grad(loss, list(scales.values())), strict=True))
    return {
        name: float((seen[name] - found[name]).abs().max() / found[name].abs().max())
        for name in seen
    }


def cut_short(root: Path) -> dict[str, Any]:
    """A run that is broken off after two passes, and one that goes on."""
    write, written = distil._Training._write, 0

    def breaking(self: Any) -> None:
        nonlocal written
        write(self)
        written += 1
        if written == 2:
            raise KeyboardInterrupt

    distil._Training._write = breaking  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt):
        distilled(root, "again")
    left = sorted(path.name for path in (root / "again").iterdir())
    written = 2
    try:
        distilled(root, "again")
    finally:
        distil._Training._write = write  # type: ignore[method-assign]
    return {"left": left, "passes": written, "digest": Lattice(root / "again").digest}


def worse(root: Path) -> dict[str, Any]:
    """A training that makes things worse, whatever it does."""
    rate, passes = distil.RATE, distil.PASSES
    distil.RATE, distil.PASSES = 0.5, 1
    try:
        out = distilled(root, "worse")
    finally:
        distil.RATE, distil.PASSES = rate, passes
    told = json.loads((out / lattice.INDEX).read_text("utf-8"))["distil"]
    return {"digest": Lattice(out).digest, "before": Lattice(root / "weights").digest, "told": told}


def checks(root: Path) -> dict[str, Callable[[], object]]:
    whole = tokens("calibration.txt", WINDOWS + HELD, WINDOW)
    for name, part in (("calibration", whole[:WINDOWS]), ("held-out", whole[WINDOWS:])):
        (root / name).mkdir()
        np.save(root / name / "tokens.npy", part)
    learned(root)
    out = distilled(root, "distilled")
    held = torch.from_numpy(whole[WINDOWS:].astype(np.int64))
    others = torch.from_numpy(tokens("evaluation.txt", 16, WINDOW).astype(np.int64))
    return {
        "index": lambda: json.loads((out / lattice.INDEX).read_text("utf-8")),
        "digest": lambda: Lattice(out).digest,
        "held-out": lambda: divergences(root, held),
        "evaluation": lambda: divergences(root, others),
        "codes": lambda: codes(root),
        "slopes": lambda: slopes(root),
        "cut": lambda: cut_short(root),
        "worse": lambda: worse(root),
        "nan": lambda: said_of_nan(lambda: distilled(root, "nan")),
        "passes": lambda: distil.PASSES,
    }


if __name__ == "__main__":
    answer(Path(sys.argv[1]) / "facts.json", checks(Path(sys.argv[1])))
