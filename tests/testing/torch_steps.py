"""Every step that computes in PyTorch, on the embedded model, for drivers in torch's toolchain:
what each one finds, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from phipipe.algorithms import distil, fisher, learn, smooth_run
from phipipe.algorithms.lattice import Lattice
from phipipe.algorithms.sensitivity import SENSITIVITY
from phipipe.backends.llamacpp.imatrix import IMATRIX, imatrix
from phipipe.backends.torch.session import Session
from phipipe.evaluate import original
from phipipe.models import compute, greedy, linears, weight_files
from phipipe.models.layerwise import Layerwise
from phipipe.models.tensors import tensors
from testing.variants import TINY, tokens

WINDOW, LIMIT = 64, 24

Arrays = dict[str, Any]


def _learned(root: Path, method: str, layers: str = "layers") -> Arrays:
    """Codes × scales of the matrices in ``layers``, and with all of them outside."""
    out = root / method
    out.mkdir()
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    named = (linears.linear_of(key) for key, _ in model.named_parameters())
    names = [n for n in named if n and (layers in n or "layers" not in n)]
    widths = {name: [4 if "layers" in name else 8, 32] for name in names}
    learn.learn(
        {"source": TINY, "calibration": root / "calibration"},
        out,
        {"learn": method, "widths": widths},
    )
    stored = Lattice(out)
    return {name: stored[name].dense() for name in names}


def _distilled(root: Path) -> Arrays:
    out = root / "distilled"
    out.mkdir()
    inputs = {"source": TINY, "weights": root / "round"}
    inputs |= {name: root / name for name in ("calibration", "held-out")}
    distil.distil(inputs, out, {})
    stored = Lattice(out)
    return {name: stored[name].scales.astype(np.float32) for name in sorted(stored.names)}


def _measured(root: Path) -> Arrays:
    out = root / "sensitivity"
    out.mkdir()
    given = {"source": TINY, "calibration": root / "calibration"}
    fisher.measure(given, out, {"tokens": 256})
    with np.load(out / SENSITIVITY) as arrays:
        return dict(arrays)


def _folded(root: Path) -> Arrays:
    out = root / "folded"
    out.mkdir()
    given = {"source": TINY, "calibration": root / "calibration"}
    smooth_run.fold(given, out, {"group": 32, "widen": False})
    return {n: t.float().numpy() for path in weight_files.shards(out) for n, t in tensors(path)}


def _important(root: Path) -> Arrays:
    out = root / "imatrix"
    out.mkdir()
    imatrix({"source": TINY, "calibration": root / "calibration"}, out, {})
    with np.load(out / IMATRIX) as arrays:
        return dict(arrays)


def _scored(root: Path) -> Arrays:
    """As a build of this backend, which is loaded as a whole."""
    unit = compute.device().type
    row = tokens("evaluation.txt", 1, WINDOW)[0].tolist()
    scored = Session(TINY, unit)
    return {"logits": scored.logits(row), "answer": np.array(list(scored.generate(row, 8)))}


def _rounded(root: Path) -> Arrays:
    windows = tokens("evaluation.txt", 2, WINDOW).tolist()
    model = Layerwise(TINY, rounded=torch.bfloat16)
    return {str(i): logits for i, logits in enumerate(model.logits(windows))}


def _predicted(root: Path) -> Arrays:
    windows = tokens("evaluation.txt", 4, WINDOW).tolist()
    return {str(i): row for i, row in enumerate(original.load(TINY).logits(windows))}


def _answered(root: Path) -> Arrays:
    """In one batch, and each by itself."""
    prompts = [row[: 5 + 4 * i] for i, row in enumerate(tokens("evaluation.txt", 3, 32).tolist())]
    model = Layerwise(TINY)
    found = {"together": greedy.answer(model, prompts, LIMIT)}
    with torch.inference_mode():
        found["apart"] = greedy._apart(model, [model.seen(prompt) for prompt in prompts], 6)
    return {
        f"{how}.{i}": np.array(ids) for how, all_ in found.items() for i, ids in enumerate(all_)
    }


STEPS: Mapping[str, Callable[[Path], Arrays]] = {
    "logits": _predicted,
    "rounded": _rounded,
    "answers": _answered,
    "round": lambda root: _learned(root, "round"),
    "search": lambda root: _learned(root, "search"),
    "gptq": lambda root: _learned(root, "gptq", "layers.0"),
    "session": _scored,
    "distil": _distilled,  # of what "round" left
    "sensitivity": _measured,
    "smooth": _folded,
    "imatrix": _important,
}


def prepare(root: Path) -> None:
    """The texts that steps read."""
    for name, text in (("calibration", "calibration.txt"), ("held-out", "evaluation.txt")):
        (root / name).mkdir(parents=True)
        np.save(root / name / "tokens.npy", tokens(text, 4, WINDOW))
