"""What `phipipe doctor` asks of this machine, and what to do about what is missing.

Every check is short: the package index is asked through uv, with the user's own settings and a
limit of time; the remote store has one, too. What cannot be reached is a finding like any other.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uv

from phipipe import backends
from phipipe.errors import PhipipeError
from phipipe.settings import Settings
from phipipe.store import room, shared
from phipipe.toolchains import installation, uv_settings
from phipipe.words import size

COMPILER, INDEX = "C++ compiler", "package index"  # checks that others look up by name
COMPILERS = ("c++", "g++", "clang++", "cl")
PROBE = "packaging"  # small, and in most toolchains
INDEX_S, REMOTE_S, COMPILER_S = 20.0, 20.0, 10.0
ROOM = 2 * 2**30  # bytes that the largest toolchain takes, about


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding. ``build`` is set where it is about a recipe; ``ok`` is None where nothing was
    asked."""

    name: str
    ok: bool | None
    message: str
    hint: str | None = None
    recipe: str | None = None
    build: str | None = None
    free_bytes: int | None = None


def machine(settings: Settings) -> list[Check]:
    """What holds for every build on this machine."""
    return [compiler(), index(), *disks(settings), remote(settings)]


def compiled() -> set[str]:
    """Toolchains whose main package comes as source code."""
    faces = map(backends.load, backends.names())
    return {face.toolchain for face in faces if face.is_compiled}


def compiler() -> Check:
    """Whether C++ can be compiled, which some toolchains need while they are installed."""
    names = " and ".join(f"`{name}`" for name in sorted(compiled()))
    needs = f"the toolchain {names} is compiled here"
    chosen = shlex.split(os.environ.get("CXX", ""), posix=os.name != "nt")[:1]
    program = next(filter(None, map(shutil.which, chosen or COMPILERS)), None)
    if program is None and not chosen and platform.system() == "Windows":
        program = _visual_studio()
    if program is None:
        words = f"CXX is `{chosen[0]}`, which is not there" if chosen else "none was found"
        return Check(
            name=COMPILER,
            ok=False,
            message=f"{words}; {needs}",
            hint=installation.COMPILER.partition(": ")[2],
        )
    # On macOS the commands are there without the tools, and would open a window that asks for them.
    asked = ["xcode-select", "-p"] if platform.system() == "Darwin" else [program, "--version"]
    if (
        Path(program).stem.lower() != "cl"
        and not program.endswith("vswhere.exe")
        and not _answers(asked, COMPILER_S)
    ):
        return Check(
            name=COMPILER,
            ok=False,
            message=f"`{program}` does not work; {needs}",
            hint=installation.COMPILER,
        )
    return Check(name=COMPILER, ok=True, message=program)


def _visual_studio() -> str | None:
    """Visual Studio's compiler is on no path; its installer's own tool knows of it."""
    folder = (
        Path(os.environ.get("PROGRAMFILES(X86)", "C:/Program Files (x86)"))
        / "Microsoft Visual Studio/Installer"
    )
    tool = folder / "vswhere.exe"
    part = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"
    asked = [str(tool), "-products", "*", "-requires", part, "-property", "installationPath"]
    return str(tool) if tool.is_file() and _answers(asked, COMPILER_S, speaks=True) else None


def _answers(command: Sequence[str], limit_s: float, speaks: bool = False) -> bool:
    """Whether ``command`` works; and, if it ``speaks``, has something to say."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=limit_s, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and (bool(done.stdout.strip()) or not speaks)


def index(limit_s: float = INDEX_S) -> Check:
    """Whether packages can be had from where uv is told to look."""
    advice = f"{installation.NETWORK} (`UV_*`, `PIP_*`, proxies); what is installed works without"
    try:
        done = _ask_index(limit_s)
    except subprocess.TimeoutExpired:
        message = f"gave no answer within {limit_s:.0f} s"
        return Check(name=INDEX, ok=False, message=message, hint=advice)
    except OSError as error:
        message = f"uv cannot be run: {error.strerror}"
        return Check(name=INDEX, ok=False, message=message, hint="install phipipe again")
    if done.returncode == 0:
        return Check(name=INDEX, ok=True, message="answers")
    lines = [line.strip(" ╰─▶×│├") for line in uv_settings.redact(done.stderr).splitlines()]
    last = next((line for line in reversed(lines) if line), "no reason given")
    reason = re.sub(r"^(cause|hint|error): ", "", last)
    return Check(name=INDEX, ok=False, message=f"cannot be used: {reason}", hint=advice)


def _ask_index(limit_s: float) -> subprocess.CompletedProcess[str]:
    """Have uv look for a package. Without a cache, or an answer of last week would count."""
    words = ["pip", "compile", "-", "--no-deps", "--no-header", "--quiet", "--no-cache"]
    impatient = {"UV_HTTP_TIMEOUT": str(int(limit_s)), "UV_HTTP_RETRIES": "0"}
    return subprocess.run(
        [uv.find_uv_bin(), *words],
        input=PROBE,
        env=os.environ | uv_settings.from_pip(os.environ) | impatient,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=limit_s,
        check=False,
        cwd=tempfile.gettempdir(),
    )


def disks(settings: Settings) -> Iterator[Check]:
    """Room where phipipe writes; folders on one disk are one finding."""
    places = {
        "cache": (settings.cache, "PHIPIPE_CACHE"),
        "toolchains": (settings.toolchains, "PHIPIPE_TOOLCHAINS"),
        "temporary files": (Path(tempfile.gettempdir()), "TMPDIR"),
    }
    seen: dict[int, list[str]] = {}
    for name, (folder, _) in places.items():
        seen.setdefault(_existing(folder).stat().st_dev, []).append(name)
    for names in seen.values():
        folder, variable = places[names[0]]
        free = shutil.disk_usage(_existing(folder)).free
        message, hint = f"{size(free, 2)} free", None
        if free < ROOM:
            message += f" at `{folder}`, where a toolchain alone takes up to {size(ROOM, 2)}"
            hint = f"set {variable} to a folder on a larger disk"
            if found := room.collection(settings.cache, ROOM) if "cache" in names else None:
                hint = found.hint
        yield Check(
            name=f"disk of {', '.join(names)}",
            ok=free >= ROOM,
            message=message,
            hint=hint,
            free_bytes=free,
        )
    for name, (folder, variable) in places.items():
        if not os.access(_existing(folder), os.W_OK):
            message = f"`{folder}` cannot be written: you have no permission"
            yield Check(
                name=name,
                ok=False,
                message=message,
                hint=f"set {variable} to a folder that you can write",
            )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def remote(settings: Settings, limit_s: float = REMOTE_S) -> Check:
    """Whether the shared store answers, where there is one."""
    name, advice = (
        "remote store",
        "check PHIPIPE_REMOTE, credentials and network; without it, unset PHIPIPE_REMOTE",
    )
    if settings.remote is None:
        return Check(name=name, ok=None, message="PHIPIPE_REMOTE is not set")
    notes: list[str] = []

    def ask() -> None:
        try:
            there = shared.connect(settings, notes.append)
            assert there is not None  # its address is set
            there.record("0" * 64)
            answered.append(there.reads)
        except PhipipeError as error:
            notes.append(error.message)

    answered: list[bool] = []
    asking = threading.Thread(target=ask, daemon=True)  # nobody waits for it longer than this
    asking.start()
    asking.join(limit_s)
    if answered[:1] == [True]:
        return Check(name=name, ok=True, message="answers")
    message = uv_settings.redact(notes[-1]) if notes else f"gave no answer within {limit_s:.0f} s"
    return Check(name=name, ok=False, message=message, hint=advice)


def text(checks: Iterable[Check]) -> str:
    """The findings for people, remedies below what they mend."""
    signs: dict[bool | None, str] = {True: "ok", False: "NO", None: "-"}
    rows = [(signs[check.ok], check.build or check.name, check) for check in checks]
    width = max((len(name) for _, name, _ in rows), default=0)
    lines = []
    for sign, name, check in rows:
        lines.append(f"  {sign:2}  {name:{width}}  {check.message}")
        lines += (
            [f"  {'':2}  {'':{width}}    try: {check.hint}"]
            if check.ok is False and check.hint
            else []
        )
    return "\n".join(lines)
