"""Where steps in PyTorch compute: on this machine's GPU where it does what the CPU does, else on
the CPU.

The one place that decides, asked in the worker. PHIPIPE_COMPUTE names a unit; left alone, a GPU is
taken if its products in fp32 are exact and the step's memory, as the plan estimates it, is free
there. Figures then agree with those of the CPU to 1e-4 of their size. Memory goes as it does on
the CPU: weights follow one layer at a time, and hidden states stay where layers are.

Apple's GPUs have no fp64. Steps that learn take sums in it, so they stay on the CPU there; what
predicts and answers needs fp32 alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn.functional import scaled_dot_product_attention

from phipipe import hardware, settings
from phipipe.errors import ToolchainError
from phipipe.processes import gpu

_LOG = logging.getLogger(__name__)
CPU = torch.device("cpu")
# Of the largest number that a product of 512 terms has: fp32 is 1e-6 off, TF32 3e-4, 16 bits more.
EXACT = 1e-5


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of GPU, as people call it. ``lacks_doubles``: it has no fp64. ``free_bytes`` of its
    memory can be had now."""

    title: str
    api: str  # of ``hardware``
    is_there: Callable[[], bool]
    name: Callable[[], str]
    free_bytes: Callable[[], int]
    peak_bytes: Callable[[], int | None]
    reset: Callable[[], None]
    release: Callable[[], None]
    lacks_doubles: bool = False


# Apple's GPUs share the machine's memory, which the machine's own check has counted.
_KINDS: Mapping[str, _Kind] = {
    "cuda": _Kind(
        title="NVIDIA GPU",
        api="cuda",
        is_there=lambda: torch.cuda.is_available(),
        name=lambda: str(torch.cuda.get_device_name()),
        free_bytes=lambda: int(torch.cuda.mem_get_info()[0]),
        peak_bytes=lambda: int(torch.cuda.max_memory_reserved()),
        reset=lambda: torch.cuda.reset_peak_memory_stats(),
        release=lambda: torch.cuda.empty_cache(),
    ),
    "mps": _Kind(
        title="Apple GPU",
        api="metal",
        is_there=lambda: torch.backends.mps.is_available(),
        name=lambda: "Apple GPU",
        free_bytes=hardware.available_bytes,
        peak_bytes=lambda: None,
        reset=lambda: None,
        release=lambda: torch.mps.empty_cache(),
        lacks_doubles=True,
    ),
}


def device(*, learns: bool = False) -> torch.device:
    """The unit that this step computes on; ``learns``: in sums of fp64, too.

    Raises:
        ToolchainError: PHIPIPE_COMPUTE names one that cannot be used.
    """
    asked = settings.compute()
    for name, kind in _KINDS.items():
        if asked not in ("auto", name) or (learns and kind.lacks_doubles):
            continue
        problem = _problem(name)
        if asked == name and problem:
            raise _refusal(asked, problem)
        needed, free = gpu.foretold_bytes(), 0 if problem else kind.free_bytes()
        if problem is None and (asked == name or needed <= free):
            return _taken(name)
        if hardware.has(kind.api):
            why = problem or f"the step takes {needed:,} bytes, and {free:,} are free there"
            _LOG.warning("not on the %s: %s", kind.title, why)
    return CPU


def take_all_cores() -> None:
    """Have PyTorch compute in a thread for each core, however many steps run beside this one. What
    is learned depends on how sums are split among threads, and a recipe is to give the same weights
    alone and beside others."""
    torch.set_num_threads(hardware.whole_cores())


def on(name: str) -> torch.device:
    """The unit ``name`` ("cpu", "cuda"), on which alone a file can be judged.

    Raises:
        ToolchainError: it cannot be used.
    """
    if name == CPU.type:
        return CPU
    if problem := _problem(name):
        raise _refusal(name, problem)
    return _taken(name)


def free_bytes(unit: torch.device) -> int:
    """What of the memory of ``unit`` can be had now."""
    return hardware.available_bytes() if unit == CPU else _KINDS[unit.type].free_bytes()


def _taken(name: str) -> torch.device:
    kind = _KINDS[name]
    kind.reset()
    gpu.uses(gpu.Use(name=kind.name(), peak_bytes=kind.peak_bytes, release=kind.release))
    return torch.device(name, 0)


@cache
def _problem(name: str) -> str | None:
    """Why the GPU of kind ``name`` cannot be used; None if it can."""
    if not _KINDS[name].is_there():
        return f"PyTorch {torch.__version__} finds none"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        off = _off(torch.device(name, 0))
    # no kernels for it, no memory left, a driver that is too old, a build without it
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0]
    return None if off <= EXACT else f"its products in fp32 are off by {off:.0e} of their size"


def _off(unit: torch.device) -> float:
    """How far a product and an attention on ``unit`` are from those in fp64 on the CPU, as a share
    of the largest number in them."""
    left, right = (torch.arange(512 * 512).view(512, 512).mul(by).sin() for by in (0.37, 0.73))
    found = _tried(left.to(unit), right.to(unit)).to(CPU).double()
    exact = _tried(left.double(), right.double())
    return float(((found - exact).abs().amax(-1) / exact.abs().amax(-1)).max())


def _tried(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Both results, [2, 512 · 512]."""
    product = left @ right
    heads = [part.unflatten(1, (8, 64)).transpose(0, 1)[None] for part in (left, right, product)]
    attended = scaled_dot_product_attention(*heads, is_causal=True)
    return torch.stack([product.flatten(), attended.flatten()])


def _refusal(name: str, problem: str) -> ToolchainError:
    return ToolchainError(
        f"this machine has no {_KINDS[name].title} that steps can compute on: {problem}",
        hint="PHIPIPE_COMPUTE=cpu computes on the CPU; if the driver is newer than the toolchain, "
        "phipipe toolchain install torch --force",
    )
