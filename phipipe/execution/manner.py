"""How plans are run: where packages go, how many steps side by side, and where they are done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from phipipe import hardware
from phipipe.execution.results import Workplace
from phipipe.settings import Settings
from phipipe.store.store import Store

# store, settings, note, threads per step server → where steps are done
Engine = Callable[[Store, Settings, Callable[[str], None], int | None], Workplace]
# the folder for packages, a build's name, the digest of its package → the package's folder
Place = Callable[[Path, str, str], Path]


def place_by_name(out: Path, name: str, digest: str) -> Path:
    """A package's folder is called like its build."""
    return out / name


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How plans are run.

    ``out`` gets the packages, each where ``place`` says; None: they stay in the store. ``jobs``
    steps run side by side; None: as many as suits the machine. After the first failure
    ``fail_fast`` starts nothing more; what was not finished is ``Skipped``. ``engine`` makes what
    steps are done on; None: a ``Bench`` on this machine.
    """

    out: Path | None = None
    place: Place = place_by_name
    jobs: int | None = None
    fail_fast: bool = False
    engine: Engine | None = None


BUILD_ONLY = Manner()


def default_jobs() -> int:
    """Steps that run side by side unless the user says otherwise: two at least, so that imports
    overlap."""
    cores, memory_gib = hardware.cores(), hardware.memory_bytes() / 2**30
    return max(1, min(8, max(2, cores // 2), int(memory_gib // 4)))
