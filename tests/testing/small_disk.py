"""What is said on disks that are too small, each case a function: run inside a namespace of its own
that may mount.

``python -m testing.small_disk FOLDER`` prints one JSON object: case → [exit code, message, hint,
the disk's path].
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from phipipe.errors import PhipipeError
from phipipe.execution.process import Request, Server
from phipipe.planning import starter
from phipipe.settings import Settings
from phipipe.store import refusals
from phipipe.store.store import Store
from phipipe.toolchains import environments
from testing.places import TESTS

MIB = 2**20
RECORD = {"runs": "m/f", "version": 1, "params": {}, "inputs": {}, "tools": {}, "usage": {}}
KEY = "ab" * 32
STEPS = {
    name: f"testing.small_disk:{name}"
    for name in ("write_much", "write_aside", "pass_words_on", "map_too_much")
}


def write_much(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """Step: write to its own folder."""
    (out / "much").write_bytes(b"x" * params["size"])


def write_aside(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """Step: write to the temporary folder, as libraries do."""
    with tempfile.NamedTemporaryFile(delete=False) as stream:
        stream.write(b"x" * params["size"])


def pass_words_on(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """Step: fail as a native library does, that knows words alone."""
    with (out / "much").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 2**16)
        except OSError:
            raise RuntimeError(params["words"]) from None


def map_too_much(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """Step: die of a page for which there is no room."""
    with (out / "much").open("w+b") as stream:
        stream.truncate(params["size"])
        with mmap.mmap(stream.fileno(), params["size"]) as mapped:
            for at in range(0, params["size"], 4096):
                mapped[at] = 1


def work(folder: Path, cache: Path, function: str, **params: Any) -> None:
    settings = Settings.read({"PHIPIPE_CACHE": str(cache), "PHIPIPE_WORKER_PATH": str(TESTS)})
    request = Request(step="tried", runs=f"testing.small_disk/{function}", inputs={}, params=params)
    (cache / "tmp").mkdir(parents=True)
    python = Path(sys.executable)
    with Server(python, name="test", log_folder=cache / "logs", settings=settings) as worker:
        worker.run(request, cache / "tmp")


def on_a_full_cache(disk: Path, spare: Path) -> None:
    work(spare, disk / "cache", "write_much", size=8 * MIB)


def native_words(disk: Path, spare: Path) -> None:
    work(
        spare,
        disk / "cache",
        "pass_words_on",
        words="write failed: No space left on device (os error 28)",
    )


def words_of_memory(disk: Path, spare: Path) -> None:
    work(spare, disk / "cache", "pass_words_on", words="failed to allocate 8388608 bytes")


def mapped(disk: Path, spare: Path) -> None:
    work(spare, disk / "cache", "map_too_much", size=8 * MIB)


def temporary(disk: Path, spare: Path) -> None:
    tempfile.tempdir = str(disk)
    os.environ["TMPDIR"] = str(disk)
    try:
        work(spare, spare / "cache", "write_aside", size=8 * MIB)
    finally:
        tempfile.tempdir = None
        del os.environ["TMPDIR"]


def package(disk: Path, spare: Path) -> None:
    store = Store(spare / "store")
    with store.scratch() as scratch:
        (scratch / "out").mkdir()
        (scratch / "out" / "much").write_bytes(b"x" * 8 * MIB)
        stored = store.commit(KEY, scratch / "out", RECORD)
    store.materialise(stored, disk / "packages" / "tried")


def files_of_the_cache(disk: Path, spare: Path) -> None:
    store = Store(disk / "cache")
    with store.scratch() as scratch:
        for i in range(1000):
            (scratch / str(i)).touch()


def installation(disk: Path, spare: Path) -> None:
    settings = Settings.read(
        {"PHIPIPE_CACHE": str(spare / "cache"), "PHIPIPE_TOOLCHAINS": str(disk / "toolchains")}
    )
    (disk / "filler").write_bytes(b"x" * (disk_free(disk) - 12 * 1024))
    environments.ensure("torch", settings, lambda line: None)


def disk_free(disk: Path) -> int:
    told = os.statvfs(disk)
    return told.f_bavail * told.f_frsize


def report(disk: Path, spare: Path) -> None:
    with refusals.guard(disk / "comparison", remedy="choose another --out"):
        (disk / "board.html").write_bytes(b"x" * 8 * MIB)


def recipe(disk: Path, spare: Path) -> None:
    (disk / "filler").write_bytes(b"x" * disk_free(disk))
    starter.write(
        disk / "r.yaml",
        device="cpu-x86_64",
        precision=None,
        backend=None,
        source="builtin:tiny-phi3",
    )


CASES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "cache": (on_a_full_cache, "size=4m"),
    "native words": (native_words, "size=4m"),
    "words of memory": (words_of_memory, "size=4m"),
    "mapped": (mapped, "size=4m"),
    "temporary": (temporary, "size=4m"),
    "package": (package, "size=4m"),
    "files": (files_of_the_cache, "size=4m,nr_inodes=60"),
    "toolchain": (installation, "size=1m"),
    "report": (report, "size=4m"),
    "recipe": (recipe, "size=1m"),
}


def main(folder: Path) -> None:
    """Try every case on a disk of its own."""
    told: dict[str, list[Any]] = {}
    for name, (case, options) in CASES.items():
        disk, spare = folder / f"{case.__name__}-disk", folder / f"{case.__name__}-spare"
        disk.mkdir()
        spare.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
        try:
            case(disk, spare)
            told[name] = [0, "", "", str(disk)]
        except PhipipeError as error:
            told[name] = [error.exit_code, error.message, str(error.hint), str(disk)]
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
