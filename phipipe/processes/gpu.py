"""What the step of this process uses of a GPU, and what it was foretold to need.

Who computes there (``models.compute``) says so; the step server asks. Standard library alone:
toolchains import this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_foretold_bytes = 0
_used: Use | None = None


@dataclass(frozen=True, kw_only=True)
class Use:
    """A GPU by its ``name``. ``peak_bytes`` tells the most that the step has had of its memory,
    None where nobody counts; ``release`` gives back what the step has left."""

    name: str
    peak_bytes: Callable[[], int | None]
    release: Callable[[], None]


def foretell(memory_bytes: int) -> None:
    """The next step is estimated to take so much memory, 0: nobody knows."""
    global _foretold_bytes
    _foretold_bytes = memory_bytes


def foretold_bytes() -> int:
    """What this step is estimated to take of memory."""
    return _foretold_bytes


def uses(use: Use) -> None:
    """The step computes there."""
    global _used
    _used = use


def usage() -> dict[str, str | int]:
    """For the step's record: nothing where it computed on the CPU."""
    if _used is None:
        return {}
    peak_bytes = _used.peak_bytes()
    return {"gpu": _used.name} | ({} if peak_bytes is None else {"peak_gpu_bytes": peak_bytes})


def release() -> None:
    """The step is over: what it has left of the GPU's memory is free for others."""
    global _used
    used, _used = _used, None
    if used is not None:
        used.release()
