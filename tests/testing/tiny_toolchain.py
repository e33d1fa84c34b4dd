"""A made-up toolchain that installs in a moment and from no network: its one package is built here,
as llama.cpp is.

    PYTHONPATH=tests python -m testing.tiny_toolchain [KILLS]

kills installations at random moments and counts what they leave behind; ``kills`` is the same for a
program. Standard library and psutil alone, besides ``phipipe.toolchains.environments`` in processes
of its own.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import psutil

NAME, VERSION = "phipipe_tiny", "1.0"
PATIENCE_S = 60.0  # for what takes moments; nothing is measured by it
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
# Says that it is there, and with which variables; then waits until it may go on, with a child as a
# compiler would be.
BACKEND = """
import json, os, pathlib, subprocess, sys, time, zipfile

HOME = pathlib.Path({home!r})

def build_wheel(folder, settings=None, metadata=None):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", str(HOME)])
    aside = HOME / f"{{os.getpid()}}.tmp"
    aside.write_text(json.dumps(dict(os.environ)))
    aside.replace(HOME / "building.json")
    with open(HOME / "builds", "a") as builds:
        builds.write("built\\n")
    if (HOME / "talk").exists():  # as ninja does
        print("[1/2] /usr/bin/g++ -c one.cpp", flush=True)
    while not (HOME / "go").exists():
        time.sleep(0.01)
    if (HOME / "talk").exists():
        print("[2/2] /usr/bin/g++ -c two.cpp", flush=True)
        time.sleep(1)  # or whoever listens looks too late
    sleeper.kill()
    sleeper.wait()
    if (HOME / "fail").exists():
        sys.exit("the tensor is crooked")
    name = "{name}-{version}-py3-none-any.whl"
    info = "{name}-{version}.dist-info"
    files = {{
        "{name}.py": "VALUE = 1",
        info + "/METADATA": "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n",
        info + "/WHEEL": "Wheel-Version: 1.0\\nGenerator: own\\nRoot-Is-Purelib: true\\n"
        "Tag: py3-none-any\\n",
    }}
    record = "".join(path + ",,\\n" for path in [*files, info + "/RECORD"])
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in (*files.items(), (info + "/RECORD", record)):
            wheel.writestr(path, text)
    return name
"""
INSTALL = """
import sys
from pathlib import Path
from phipipe.toolchains import environments
from phipipe.settings import Settings
environments.LOCKS = Path(sys.argv[1])
environments.ensure("tiny", Settings.read(), lambda line: print(line, flush=True))
"""


class Tiny:
    """The toolchain ``tiny``, its package and where it is installed, all in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.locks, self.toolchains, self.temporary = (
            folder / "locks",
            folder / "toolchains",
            folder / "tmp",
        )
        for made in (self.locks, self.temporary, folder / "links"):
            made.mkdir(parents=True)
        (self.locks / "tiny.txt").write_text(f"{NAME}=={VERSION}\n", "utf-8")
        backend = BACKEND.format(home=str(folder), name=NAME, version=VERSION)
        about = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n"
        with tarfile.open(folder / "links" / f"{NAME}-{VERSION}.tar.gz", "w:gz") as archive:
            for path, text in (
                ("pyproject.toml", PYPROJECT),
                ("backend.py", backend),
                ("PKG-INFO", about),
            ):
                entry = tarfile.TarInfo(f"{NAME}-{VERSION}/{path}")
                entry.size = len(text.encode())
                archive.addfile(entry, BytesIO(text.encode()))

    @property
    def variables(self) -> dict[str, str]:
        """What makes uv look nowhere else, and phipipe put everything here."""
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self.temporary))
        uv = {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(self.folder / "links")}
        uv |= {"UV_CACHE_DIR": str(self.folder / "uv")}
        return {**temporary, **uv, "PHIPIPE_TOOLCHAINS": str(self.toolchains)}

    def start(self) -> subprocess.Popen[str]:
        """An installation in a process of its own, which says on stdout what it does."""
        command = [sys.executable, "-c", INSTALL, str(self.locks)]
        environment = {**os.environ, **self.variables}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def go_on(self, may: bool = True) -> None:
        """Whether the package's build may finish."""
        (self.folder / "go").touch() if may else (self.folder / "go").unlink(missing_ok=True)

    def builds(self) -> int:
        """How often the package's build was begun."""
        path = self.folder / "builds"
        return len(path.read_text("utf-8").splitlines()) if path.exists() else 0

    def forget(self) -> None:
        """As if nothing had ever been built or installed."""
        import shutil

        for name in ("uv", "toolchains", "building.json", "builds", "go", "fail"):
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def processes(self) -> list[psutil.Process]:
        """All that live and have to do with it, but us."""
        own, found = str(self.folder), []
        for process in psutil.process_iter():
            try:
                known = [*process.cmdline(), *process.environ().values()]
                if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found += [process] if any(own in word for word in known) else []
            except psutil.Error:
                continue
        return found

    def left_overs(self) -> list[str]:
        """What lies about although no installation goes on: half toolchains, lists, temporary
        files."""
        there = [*self.toolchains.iterdir()] if self.toolchains.exists() else []
        half = [
            path
            for path in there
            if path.is_dir() and not (path / "phipipe-toolchain.json").exists()
        ]
        lists = [path for path in there if path.suffix not in ("", ".lock", ".busy")]
        return [str(path) for path in (*half, *lists, *self.temporary.iterdir())]


def wait_until(true: Callable[[], bool], what: str) -> None:
    """
    Raises:
        TimeoutError: it has not come true.
    """
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> None:
    """``kill -9`` of the one process, as the kernel or a user would do it."""
    process.kill() if os.name == "nt" else os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def kills(folder: Path, times: int, seed: int = 0) -> dict[str, int]:
    """Kill ``times`` installations at random moments; count what lives on, what is left, what then
    fails."""
    tiny, chance = Tiny(folder), random.Random(seed)
    counts = {"kills": 0, "processes left": 0, "failed installations": 0, "left-overs": 0}
    tiny.go_on()
    start = time.monotonic()
    assert tiny.start().wait(PATIENCE_S) == 0
    whole = time.monotonic() - start
    for _ in range(times):
        tiny.forget()
        stays_building = chance.random() < 0.5
        tiny.go_on(may=not stays_building)
        process = tiny.start()
        time.sleep(chance.uniform(0, whole))
        kill(process)
        counts["kills"] += 1
        tiny.go_on()
        again = tiny.start()  # at once: the one before may not be gone yet
        counts["failed installations"] += again.wait(PATIENCE_S) != 0
        again.communicate()
        counts["processes left"] += len(tiny.processes())
        counts["left-overs"] += len(tiny.left_overs())
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        told = kills(Path(home) / "tiny", int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    print(json.dumps(told))
    sys.exit(any(told[name] for name in told if name != "kills"))
