"""What `plan` prints as JSON, by the same rules as ``documents``."""

from __future__ import annotations

from dataclasses import dataclass

from phipipe.output.documents import Error, Warned
from phipipe.steps import Json


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a build takes on its device; ``memory_gib`` is what the device has, null if that
    varies."""

    weight_bytes: int
    context: int
    cache_bytes: int
    total_bytes: int
    memory_gib: float | None
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Fixup:
    """What is changed in a copy of ``config.json``, and why."""

    rule: str
    reason: str
    patch: dict[str, Json]


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A step: ``key`` is null where an input is still to be made, bytes are estimates.
    ``written_bytes`` are less than ``output_bytes`` where its files are read in place or taken
    over; those of the package count its copy in its folder.

    ``seconds`` is what ``earlier`` results tell of a step that will run, null where none does;
    ``machines`` are those that could do it, null where no others were asked."""

    name: str
    runs: str
    toolchain: str | None
    key: str | None
    cached: bool
    why: str
    output_bytes: int
    written_bytes: int
    memory_bytes: int
    seconds: float | None
    earlier: int
    machines: list[str] | None


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """Matrices of one kind, ``name`` a pattern over theirs, that a map or learned weights store
    alike: ``count`` of them take ``size_bytes`` together."""

    name: str
    width: str
    count: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A build as planned. ``seconds``: of all steps that will run, one after another, as far as
    they are known; null where none is. ``written_bytes``: in all; ``peak_disk_bytes``: the most
    that is there at once; ``kept_bytes`` stay in the cache, ``delivered_bytes`` in the package's
    folder. ``refusal``: why `run` would refuse the whole recipe on this machine. ``matrices`` is
    empty without a map; ``matrices_bytes``: their sum."""

    name: str
    device: str
    unit: str
    backend: str
    precision: str
    source: str
    on_target: str
    memory_bytes: int
    fit: Fit | None
    matrices: list[Matrices]
    matrices_bytes: int
    warnings: list[Warned]
    fixups: dict[str, Fixup]
    steps: list[PlannedStep]
    seconds: float | None
    written_bytes: int
    peak_disk_bytes: int
    kept_bytes: int
    delivered_bytes: int
    refusal: Error | None
