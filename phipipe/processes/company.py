"""Steps that go through the layers of one checkpoint side by side, each in a process of its own:
which of them reads a layer for all, and when its room is free again.

They agree by empty files in a folder, for a file system tells all processes the same, in the same
order. Nobody waits for one that has left; of one that died, the parent says so. Those that are
there when the first begins go together, and read layers in their order; all others read for
themselves. Light: the parent and toolchains import this.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

POLL_S = 0.01
PATIENCE_S = 60.0  # that those who are there wait for others to start
TELL_S = 20.0  # who waits says so now and then, or would seem to hang


@dataclass(frozen=True, kw_only=True)
class Seat:
    """The place of one step: its ``number``, from 0; the ``folder`` in which they agree; and
    ``room``, a file that all of them map into memory."""

    folder: str
    number: int
    room: str

    def as_json(self) -> dict[str, str | int]:
        """For a request."""
        return asdict(self)

    def leave(self) -> None:
        """Let nobody wait for this one any more."""
        _mark(Path(self.folder), f"{self.number}.left")


def seal(folder: Path, count: int) -> None:
    """So many steps were given seats in ``folder``, and no more will come."""
    _mark(folder, f"{count}.expected")


def _mark(folder: Path, name: str) -> None:
    if folder.is_dir():  # all may be gone already
        (folder / name).touch()


class Company:
    """The others, as the step in ``seat`` sees them. Its methods may be called from two threads."""

    def __init__(self, seat: Seat) -> None:
        self._seat, self._folder = seat, Path(seat.folder)
        self._gone, self._reading = False, threading.Lock()
        self.found = self.given = 0  # layers that this one read for all, and got of others

    @property
    def room(self) -> Path:
        """The file that layers lie in."""
        return Path(self._seat.room)

    def join(self) -> bool:
        """Wait for the others to start; whether there are any to go with."""
        self._mark(f"{self._seat.number}.joined")
        end = time.monotonic() + PATIENCE_S
        if not self._has("closed"):
            self._wait(lambda: self._is_complete() or time.monotonic() > end)
            # From here on, who joins sees this and leaves; whom we do not see, has not joined.
            self._mark("closed")
            if len(self._members()) > 1:
                return True
        self.leave()
        return False

    def leave(self) -> None:
        """Go on alone, once a layer that is being read has been."""
        self._gone = True
        with self._reading:
            self._seat.leave()

    def is_reader(self) -> bool:
        """Whether this one reads for all: it has the lowest number of those that are there."""
        return not self._gone and min(self._members(), default=-1) == self._seat.number

    def await_layer(self, i: int) -> bool:
        """Wait for layer ``i``; False: this one has to read it."""
        self._wait(lambda: self._has(f"{i}.ready") or self.is_reader())
        return self._has(f"{i}.ready")

    def await_room(self, i: int) -> bool:
        """Wait until all have passed the layer before the last, whose room layer ``i`` gets;
        whether this one is still to read it."""
        self._wait(lambda: i < 2 or all(self._has(f"{m}.passed.{i - 2}") for m in self._members()))
        return not self._gone

    def read(self, i: int, layer: Callable[[int], None]) -> bool:
        """Have layer ``i`` put into its room, for all; whether that was done."""
        with self._reading:
            if not self._gone:
                layer(i)
                self.found += 1
                self._mark(f"{i}.ready")
            return not self._gone

    def has_passed(self, i: int) -> None:
        """This one needs layer ``i`` no more."""
        self._mark(f"{self._seat.number}.passed.{i}")

    def _mark(self, name: str) -> None:
        _mark(self._folder, name)

    def _has(self, name: str) -> bool:
        return (self._folder / name).exists()

    def _members(self) -> list[int]:
        """Who has joined and not left."""
        names = self._names()
        joined = (name.removesuffix(".joined") for name in names if name.endswith(".joined"))
        return [int(one) for one in joined if f"{one}.left" not in names]

    def _is_complete(self) -> bool:
        """Whether all that were given seats have joined or left, or somebody began."""
        names = self._names()
        expected = [name for name in names if name.endswith(".expected")]
        come = {name.split(".")[0] for name in names if name.endswith((".joined", ".left"))}
        return "closed" in names or f"{len(come)}.expected" in expected

    def _names(self) -> set[str]:
        return {path.name for path in self._folder.iterdir()}

    def _wait(self, until: Callable[[], bool]) -> None:
        told = time.monotonic()
        while not self._gone and not until():
            if time.monotonic() - told > TELL_S:
                print("waiting for the steps that go through the same layers", flush=True)
                told = time.monotonic()
            time.sleep(POLL_S)


# In a step server

_source: Path | None = None
_company: Company | None = None


def sit(source: str | None, seat: Mapping[str, str | int] | None) -> None:
    """The step that comes now has this ``seat`` among those that go through the layers of the
    checkpoint in ``source``; None: it goes alone."""
    global _source, _company
    _source = Path(source) if source else None
    _company = Company(Seat(**seat)) if seat else None  # type: ignore[arg-type]


def at(source: Path) -> Company | None:
    """With whom to go through the layers of the checkpoint in ``source``, once."""
    global _source
    if _source is None or source != _source:
        return None
    _source = None
    return _company


def rise() -> dict[str, int]:
    """The step is done; how many layers it read for all, and how many others for it, by the names
    in a step's usage. Nothing where it went alone."""
    if _company is None:
        return {}
    _company.leave()
    counts = {"layers_read": _company.found, "layers_given": _company.given}
    return counts if any(counts.values()) else {}
