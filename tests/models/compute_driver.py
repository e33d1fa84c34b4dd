"""Runs in the torch toolchain: ``python compute_driver.py FOLDER`` leaves FOLDER/facts.json about
what steps compute on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from testing import pretend_gpu, torch_steps
from testing.drive import answer, message
from testing.torch_names import ON_CPU
from torch.nn.attention import SDPBackend, sdpa_kernel

from phipipe.algorithms import distil
from phipipe.models import compute, products
from phipipe.processes import gpu

distil.PASSES = 1
VARIABLE = "PHIPIPE_COMPUTE"
FIRST = "layers.0.self_attn.qkv_proj"


def under(word: str, found: Callable[[], Any]) -> Any:
    """What ``found`` gives while PHIPIPE_COMPUTE is ``word``."""
    os.environ[VARIABLE] = word
    try:
        return found()
    finally:
        del os.environ[VARIABLE]


def beside(theirs: torch_steps.Arrays, ours: torch_steps.Arrays) -> dict[str, float]:
    """The largest difference of an array's numbers, as a share of its largest; and the share of
    numbers that differ in the matrix that learns from the same inputs on every unit."""
    pairs = [(np.float64(theirs[name]), np.float64(ours[name])) for name in theirs]
    assert theirs.keys() == ours.keys()
    return {
        "off": max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs),
        "differ": float((theirs[FIRST] != ours[FIRST]).mean()) if FIRST in theirs else 0.0,
    }


def figures(root: Path, there: Callable[[], Any]) -> dict[str, Any]:
    """Each step's result on the CPU, and ``there``: how far the two are apart, and which unit it
    said it computed on. Attention on the CPU is that of units without kernels of their own, and
    products are by the library that computes for the pretended one, too."""
    products._has_onednn = lambda: False
    found: dict[str, Any] = {}
    for place in ("cpu", "there"):
        torch_steps.prepare(root / place)
    for name, step in torch_steps.STEPS.items():
        with nullcontext() if name in ON_CPU else sdpa_kernel(SDPBackend.MATH):
            on_cpu = under("cpu", lambda step=step: step(root / "cpu"))
        pretend_gpu.computed.clear()
        with there():
            found[name] = beside(on_cpu, step(root / "there"))
        found[name] |= {"usage": gpu.usage(), "operations": pretend_gpu.computed.total()}
        gpu.release()
    return found


def mixed() -> str:
    """What the pretended GPU says of a product of two devices."""
    with pretend_gpu.pretended():
        try:
            torch.ones(2, device=pretend_gpu.UNIT) * torch.ones(2)
        except RuntimeError as error:
            return str(error)
    return "nothing"


def choices() -> dict[str, Any]:
    """The unit by what was asked for, of a GPU with and without fp64, with and without room."""
    found: dict[str, Any] = {}
    kinds = ((True, 2**40), (False, 2**40), (True, 1000))
    for learns in (False, True):
        for doubles, free in kinds:
            gpu.foretell(2000)
            with pretend_gpu.pretended(learns=doubles, free_bytes=free):
                name = f"learns {learns}, doubles {doubles}, room {free > 2000}"
                found[name] = compute.device(learns=learns).type
    gpu.foretell(0)
    with pretend_gpu.pretended():
        found["cpu"] = under("cpu", lambda: compute.device().type)
    gpu.release()
    return found


def answers() -> dict[str, Any]:
    """What is made of a CUDA that answers and is not there, or whose products are TF32."""
    there, torch.cuda.is_available = torch.cuda.is_available, lambda: True
    found: dict[str, Any] = {}
    compute._problem.cache_clear()
    try:
        found["broken"] = under("auto", lambda: compute.device().type)
        found["asked"] = under("cuda", lambda: message(compute.device))
    finally:
        torch.cuda.is_available = there
        compute._problem.cache_clear()
    found["none"] = [under(word, lambda: message(compute.device)) for word in ("cuda", "mps")]
    found["word"] = under("gpu", lambda: message(compute.device))
    tried = compute._tried

    def as_tf32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype is torch.float64:
            return tried(left, right)
        cut = (
            (part.cpu().view(torch.int32) & -(1 << 13)).view(torch.float32)
            for part in (left, right)
        )
        return tried(*cut)

    compute._tried = as_tf32
    try:
        with pretend_gpu.pretended():
            found["tf32"] = [compute.device().type, compute._problem(pretend_gpu.NAME)]
    finally:
        compute._tried = tried
    return found


def checks(root: Path) -> dict[str, Callable[[], object]]:
    has_gpu = torch.cuda.is_available()
    return {
        "pretended": lambda: figures(root / "pretended", pretend_gpu.pretended),
        "gpu": lambda: figures(root / "gpu", nullcontext) if has_gpu else {},
        "mixed": mixed,
        "choices": choices,
        "answers": answers if not has_gpu else dict,
        "exact": lambda: compute._off(compute.CPU),
        "precise": lambda: [
            torch.backends.cuda.matmul.allow_tf32,
            torch.get_float32_matmul_precision(),
        ],
    }


if __name__ == "__main__":
    answer(Path(sys.argv[1]) / "facts.json", checks(Path(sys.argv[1])))
