"""What `phipipe doctor` asks of this machine, and of recipes: would they run here, and if not, what
to do.

Every check is short: the package index is asked through uv, with the user's own settings and a
limit of time; the remote store has one, too. What cannot be reached is a finding like any other.
"""

from __future__ import annotations

import importlib.metadata
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
from typing import TYPE_CHECKING

from phipipe import backends
from phipipe.errors import PhipipeError
from phipipe.package.card import MAIN_TOOLS
from phipipe.plan import plan as planner
from phipipe.recipe import load
from phipipe.run import preflight
from phipipe.store import shared
from phipipe.store.store import Store
from phipipe.toolchains import environments, installation, uv_settings
from phipipe.words import size

if TYPE_CHECKING:
    from phipipe.plan.plan import Plan
    from phipipe.recipe.build import Build
    from phipipe.settings import Settings

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
    name, needs = (
        "C++ compiler",
        f"the toolchain {' and '.join(f'`{n}`' for n in sorted(compiled()))} is compiled here",
    )
    chosen = shlex.split(os.environ.get("CXX", ""), posix=os.name != "nt")[:1]
    found = next(filter(None, map(shutil.which, chosen or COMPILERS)), None)
    if found is None and not chosen and platform.system() == "Windows":
        found = _visual_studio()
    if found is None:
        said = f"CXX is `{chosen[0]}`, which is not there" if chosen else "none was found"
        return Check(
            name=name,
            ok=False,
            message=f"{said}; {needs}",
            hint=installation.COMPILER.partition(": ")[2],
        )
    # On macOS the commands are there without the tools, and would open a window that asks for them.
    asked = ["xcode-select", "-p"] if platform.system() == "Darwin" else [found, "--version"]
    if (
        Path(found).stem.lower() != "cl"
        and not found.endswith("vswhere.exe")
        and not _answers(asked, COMPILER_S)
    ):
        return Check(
            name=name,
            ok=False,
            message=f"`{found}` does not work; {needs}",
            hint=installation.COMPILER,
        )
    return Check(name=name, ok=True, message=found)


def _visual_studio() -> str | None:
    """Visual Studio's compiler is on no path; its installer's own tool knows of it."""
    folder = (
        Path(os.environ.get("PROGRAMFILES(X86)", "C:/Program Files (x86)"))
        / "Microsoft Visual Studio/Installer"
    )
    tool = folder / "vswhere.exe"
    part = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"
    asked = [str(tool), "-products", "*", "-requires", part, "-property", "installationPath"]
    return str(tool) if tool.is_file() and _answers(asked, COMPILER_S, said=True) else None


def _answers(command: Sequence[str], limit_s: float, said: bool = False) -> bool:
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=limit_s, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and (bool(done.stdout.strip()) or not said)


def index(limit_s: float = INDEX_S) -> Check:
    """Whether packages can be had from where uv is told to look."""
    import uv

    name, advice = (
        "package index",
        f"{installation.NETWORK} (`UV_*`, `PIP_*`, proxies); what is installed works without",
    )
    environment = (
        os.environ
        | uv_settings.from_pip(os.environ)
        | {"UV_HTTP_TIMEOUT": str(int(limit_s)), "UV_HTTP_RETRIES": "0"}
    )
    # Without a cache, or an answer of last week would count.
    command = [
        uv.find_uv_bin(),
        "pip",
        "compile",
        "-",
        "--no-deps",
        "--no-header",
        "--quiet",
        "--no-cache",
    ]
    try:
        done = subprocess.run(
            command, input=PROBE, env=environment,
            capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=limit_s, check=False,
            cwd=tempfile.gettempdir(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Check(
            name=name, ok=False, message=f"gave no answer within {limit_s:.0f} s", hint=advice
        )
    except OSError as error:
        return Check(
            name=name,
            ok=False,
            message=f"uv cannot be run: {error.strerror}",
            hint="install phipipe again",
        )
    if done.returncode == 0:
        return Check(name=name, ok=True, message="answers")
    lines = [line.strip(" ╰─▶×│├") for line in uv_settings.redact(done.stderr).splitlines()]
    said = re.sub(
        r"^(cause|hint|error): ",
        "",
        next((line for line in reversed(lines) if line), "no reason given"),
    )
    return Check(name=name, ok=False, message=f"cannot be used: {said}", hint=advice)


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
        told = Check(
            name=f"disk of {', '.join(names)}",
            ok=True,
            message=f"{size(free, 2)} free",
            free_bytes=free,
        )
        if free < ROOM:
            hint = (
                f"`phipipe cache gc --budget GIB` makes room; or set {variable} to a folder "
                f"on a larger disk"
            )
            message = f"{size(free, 2)} free at `{folder}`, where a toolchain alone takes up to {size(ROOM, 2)}"
            told = Check(name=told.name, ok=False, message=message, hint=hint, free_bytes=free)
        yield told
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
    said = uv_settings.redact(notes[-1]) if notes else f"gave no answer within {limit_s:.0f} s"
    return Check(name=name, ok=False, message=said, hint=advice)


def recipes(paths: Iterable[Path], settings: Settings, found: Sequence[Check]) -> Iterator[Check]:
    """Whether every build of the recipes could run here; ``found`` is what ``machine`` knows."""
    for path in paths:
        try:
            builds = load.load(path, options=backends.OptionsOf())
        except PhipipeError as error:
            yield _refused(path, path.stem, error)
            continue
        for build in builds:
            yield from _build(path, build, settings, found)


def _build(path: Path, build: Build, settings: Settings, found: Sequence[Check]) -> Iterator[Check]:
    try:
        plan = planner.prepare(build)
        store = Store(settings.cache, notify=lambda line: None)
        refusal = preflight.refusal([plan], store, settings, None) if settings.preflight else None
    except PhipipeError as error:
        yield _refused(path, build.name, error)
        return
    if refusal:
        yield _refused(path, build.name, refusal)
    missing = [name for name in plan.toolchains if environments.installed(name, settings) is None]
    blocked = [
        *_blocked(path, plan, missing, found),
        *(_lacking(path, plan) if settings.use_current else ()),
    ]
    yield from blocked
    if refusal is None and not blocked:
        later = f"; first use installs the toolchain `{'`, `'.join(missing)}`" if missing else ""
        yield Check(
            name="recipe",
            ok=True,
            message=f"can run here{later}",
            recipe=str(path),
            build=build.name,
        )


def _blocked(
    path: Path, plan: Plan, missing: Sequence[str], found: Sequence[Check]
) -> Iterator[Check]:
    """Missing toolchains that could not be installed now."""
    broken = {check.name: check for check in found if check.ok is False}
    for name in missing:
        for trouble in ("package index", *(("C++ compiler",) if name in compiled() else ())):
            if trouble in broken:
                message = (
                    f"needs the toolchain `{name}`, which cannot be installed: {trouble}: "
                    f"{broken[trouble].message}"
                )
                yield Check(
                    name="recipe", ok=False, message=message, hint=broken[trouble].hint, recipe=str(path),
                    build=plan.build.name,
                )  # fmt: skip


def _lacking(path: Path, plan: Plan) -> Iterator[Check]:
    """With PHIPIPE_TOOLCHAIN=current, toolchains whose main packages the running Python does not
    have."""
    for name in plan.toolchains:
        asked = re.findall(
            r"(?m)^([a-z0-9._-]+)==[^;\n]*$",
            (environments.LOCKS / f"{name}.txt").read_text("utf-8"),
        )
        main = {package for package in asked if MAIN_TOOLS.fullmatch(package)} - {
            *uv_settings.EXCLUDED
        }
        if lost := sorted(package for package in main if not _is_here(package)):
            yield Check(
                name="recipe", ok=False, message=f"this Python lacks " f"{', '.join(f'`{n}`' for n in lost)}",
                hint=f"pip install 'phipipe[{name}]', or unset PHIPIPE_TOOLCHAIN", recipe=str(path),
                build=plan.build.name,
            )  # fmt: skip


def _is_here(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def _refused(path: Path, build: str, error: PhipipeError) -> Check:
    return Check(
        name="recipe",
        ok=False,
        message=error.message,
        hint=error.hint,
        recipe=str(path),
        build=build,
    )


def fit_to_run(found: Iterable[Check]) -> bool:
    """Whether every recipe that was asked about could run."""
    return not any(check.ok is False for check in found if check.recipe is not None)


def text(found: Iterable[Check]) -> str:
    """The findings for people, remedies below what they mend."""
    signs: dict[bool | None, str] = {True: "ok", False: "NO", None: "-"}
    rows = [(signs[check.ok], check.build or check.name, check) for check in found]
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
