"""What `runs show --profile` prints as JSON, by the same rules as ``documents``; null where a run
did not record it: an older one, a step that was cached, a system that does not tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from phipipe.output.lists import Run


@dataclass(frozen=True, kw_only=True)
class Wait:
    """``seconds`` that a step waited: for a result, for memory, a slot (a place among the steps
    that run at once), the machine alone, or a toolchain. ``step`` or ``toolchain`` is the one
    whose end ended the wait."""

    cause: Literal["result", "memory", "slot", "alone", "toolchain"]
    step: str | None
    toolchain: str | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A step, or with ``is_toolchain`` the installation of a toolchain. ``state`` is done, cached,
    failed or unfinished.

    It began ``start_seconds`` after the run did and took ``seconds``, ``work_seconds`` of them in
    its own process; the rest is phipipe's: it checks what the step reads and stores what it made.
    ``cpu_seconds`` are of the step's process and its children, bytes went from and to disks. A
    result is waited for from when all others are there. ``gpu`` is what PyTorch computed on, if not
    the CPU, and ``peak_gpu_bytes`` what it had of its memory. ``critical``: on the critical path.
    Of steps that go through a model's layers side by side, ``layers_read`` are those that it read
    for all, in its own bytes and CPU seconds, and ``layers_given`` those that another one read; the
    memory in which they lie counts in the peak of each.
    """

    name: str
    is_toolchain: bool
    state: Literal["done", "cached", "failed", "unfinished"]
    machine: str | None
    start_seconds: float
    seconds: float
    work_seconds: float | None
    cpu_seconds: float | None
    read_bytes: int | None
    written_bytes: int | None
    peak_anon_bytes: int | None
    peak_rss_bytes: int | None
    scored_tokens: int | None
    generated_tokens: int | None
    layers_read: int | None
    layers_given: int | None
    gpu: str | None
    peak_gpu_bytes: int | None
    waits: list[Wait] | None
    critical: bool | None


@dataclass(frozen=True, kw_only=True)
class Profile(Run):
    """A recorded run's time, its steps in the order in which they began.

    ``span_seconds``: from its first event to its last. ``critical_path``: the steps and
    installations that set its length, each the one that the next waited for, and together
    ``critical_seconds``. ``busy_seconds``: at least one step ran; ``overlap_seconds``: two or more
    did. CPU seconds and bytes are of all of the run's processes on this machine.
    """

    span_seconds: float
    busy_seconds: float
    overlap_seconds: float
    critical_path: list[str] | None
    critical_seconds: float | None
    cpu_seconds: float | None
    read_bytes: int | None
    written_bytes: int | None
    steps: list[Timed]
