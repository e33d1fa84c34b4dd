"""How much room the cache could make: the command that makes it, and what that frees.

Nothing is locked or changed here: this is asked where the disk is full already, and while builds
run. What those need is not counted.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from phipipe import words
from phipipe.errors import StoreError
from phipipe.store import downloads, files
from phipipe.store.collection import choose
from phipipe.store.records import Records

LARGER = "set PHIPIPE_CACHE to a larger disk"
LEAST = words.MIB  # bytes that are worth a command
STEP_GIB = 0.1  # budgets are said with one decimal
SPARE = 1.05  # of what is missing


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What ``phipipe cache gc --budget BUDGET_GIB`` would free, of ``missing_bytes``."""

    budget_gib: float
    freed_bytes: int
    missing_bytes: int

    @property
    def hint(self) -> str:
        """The command, what it frees, and what else there is."""
        enough = self.freed_bytes >= self.missing_bytes
        command = f"phipipe cache gc --budget {self.budget_gib:g}"
        frees = f"frees about {words.size(self.freed_bytes)}{'' if enough else ', not enough'}"
        return f"{command} {frees}; or {LARGER}"


def collection(cache: Path, needed_bytes: int | None = None) -> Collection | None:
    """The collection that makes room for ``needed_bytes``, or the largest that there is; None where
    the cache has nothing that can go."""
    sizes, uses, pinned = _contents(cache)
    free = _free(cache)
    total = sum(sizes.values())
    missing = total if needed_bytes is None else max(0, needed_bytes - free)
    budget_gib = max(0.0, math.floor((total - missing * SPARE) / words.GIB / STEP_GIB) * STEP_GIB)
    budget = round(budget_gib, 1)
    gone = choose(sizes, uses, pinned, int(budget * words.GIB))
    freed = sum(sizes[name] for name in gone)
    if freed < LEAST:
        return None
    return Collection(
        budget_gib=budget,
        freed_bytes=freed,
        missing_bytes=0 if needed_bytes is None else missing,
    )


def hint(cache: Path, needed_bytes: int | None = None) -> str:
    """What to do where the disk of ``cache`` is too small for ``needed_bytes`` more."""
    found = collection(cache, needed_bytes)
    return found.hint if found else LARGER


def _contents(cache: Path) -> tuple[dict[str, int], list[tuple[str, int]], set[str]]:
    """Bytes of every object and unfinished download; times of use; what running builds need."""
    sizes: dict[str, int] = {}
    uses: list[tuple[str, int]] = []
    pinned: set[str] = set()
    with contextlib.suppress(OSError, StoreError):
        sizes |= {path.name: files.size_of(path) for path in (cache / "objects").iterdir()}
        uses += [use for use in Records(cache).last_uses().values() if use[0]]
    with contextlib.suppress(OSError, StoreError):
        for part in downloads.unfinished(cache):
            sizes[part.repository] = part.size_bytes
            uses.append((part.repository, part.used_ns))
    for session in (cache / "pins").glob("*/"):
        with contextlib.suppress(OSError):
            pinned |= {pin.name for pin in session.iterdir()}
    return sizes, uses, pinned


def _free(cache: Path) -> int:
    with contextlib.suppress(OSError, StopIteration):
        there = next(p for p in (cache, *cache.absolute().parents) if p.exists())
        return shutil.disk_usage(there).free
    return 0
