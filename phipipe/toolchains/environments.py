"""The isolated environment of a backend: made by uv from a lock, on first use, beside all the
others.

A toolchain's folder is named by its lock and Python; a state file, written last, says what is in
it. That list (name → version) is the fingerprint in keys and provenance.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from phipipe.errors import ToolchainError
from phipipe.processes import launcher
from phipipe.settings import Settings
from phipipe.store import free_space
from phipipe.suggestions import near
from phipipe.toolchains.contents import find_missing, list_own_packages, list_packages, python_of
from phipipe.toolchains.installation import STATE, Installation, has_nvidia

LOCKS = Path(__file__).parent
# Toolchains whose main package has builds for some systems only: (system, machine) as ``platform``
# names them.
WINDOWS, LINUX = ("Windows", "AMD64"), ("Linux", "x86_64")
ONLY: Mapping[str, tuple[tuple[str, str], ...]] = {
    "qnn": (WINDOWS, ("Windows", "ARM64"), LINUX),
    "onnxruntime-cuda": (WINDOWS, LINUX),
    "mlx": (("Darwin", "arm64"), LINUX, ("Linux", "aarch64")),
}


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A usable toolchain: its interpreter, and what is really installed in it, sorted."""

    name: str
    python: Path
    packages: Mapping[str, str]
    path: Path


def names() -> tuple[str, ...]:
    """Names of all toolchains: the locks' file names."""
    return tuple(sorted(path.stem for path in LOCKS.glob("*.txt")))


def lock_of(name: str) -> Path:
    """The lock of toolchain ``name``: each package with its version.

    Raises:
        ToolchainError: there is no such toolchain.
    """
    if name not in names():
        raise ToolchainError(
            f"unknown toolchain `{name}`{near(name, names())}",
            hint=f"toolchains: {', '.join(names())}",
        )
    return LOCKS / f"{name}.txt"


def path_of(name: str, settings: Settings) -> Path:
    """Where toolchain ``name`` lies, installed or not.

    Raises:
        ToolchainError: there is no such toolchain.
    """
    digest = hashlib.sha256(lock_of(name).read_bytes()).hexdigest()[:12]
    return (
        settings.toolchains / f"{name}-{digest}-py{sys.version_info.major}{sys.version_info.minor}"
    )


def installed(name: str, settings: Settings) -> Installed | None:
    """The toolchain if it is there, by a look that takes milliseconds: state, interpreter, package
    folders."""
    if settings.use_current:
        return _current(name)
    path = path_of(name, settings)
    if not (path / STATE).is_file():
        return None
    try:
        packages = json.loads((path / STATE).read_text("utf-8"))["packages"]
        if not python_of(path).exists() or list_packages(path) != packages:
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Installed(name=name, python=python_of(path), packages=packages, path=path)


def _current(name: str) -> Installed:
    """The running interpreter's own packages; the user answers for what is in it."""
    path_of(name, Settings(cache=Path(), toolchains=Path()))  # an unknown name is still an error
    return Installed(
        name=name,
        python=Path(sys.executable),
        packages=list_own_packages(),
        path=Path(sys.prefix),
    )


def foreign(name: str) -> str | None:
    """Where toolchain ``name`` exists, in words, if that is not here; None if it exists here."""
    places = ONLY.get(name)
    if places is None or (platform.system(), platform.machine()) in places:
        return None
    return " and ".join(f"{system} on {machine}" for system, machine in places)


def refuse_foreign(name: str) -> None:
    """
    Raises:
        ToolchainError: toolchain ``name`` does not exist for this system.
    """
    if elsewhere := foreign(name):
        raise ToolchainError(
            f"toolchain `{name}` exists for {elsewhere} only; this is {platform.system()} on "
            f"{platform.machine()}",
            hint="build there; the package runs on its device all the same",
        )


def is_useful(name: str) -> bool:
    """Whether toolchain ``name`` is of use here: it exists for this system, and what it computes on
    is there."""
    return foreign(name) is None and (not name.endswith("-cuda") or has_nvidia())


def ensure(
    name: str,
    settings: Settings,
    notify: Callable[[str], None],
    stop: launcher.Stop = lambda: False,
    links: Path | None = None,
) -> Installed:
    """The toolchain, installed first if it has to be. Of several processes one installs, the others
    wait. Wheels in the folder ``links`` are taken before those of an index.

    Raises:
        ToolchainError: it cannot be installed; nothing is left behind.
        StoreError: there is no room.
        Interrupted: ``stop`` said so, meanwhile.
    """
    usable = installed(name, settings)
    if usable:
        return usable
    refuse_foreign(name)
    _install(replace(_installation(name, settings, notify, stop), links=links), settings)
    usable = installed(name, settings)
    if usable is None:
        raise ToolchainError(
            f"toolchain `{name}` is not what was installed", hint="run the same command again"
        )
    return usable


def _installation(
    name: str, settings: Settings, notify: Callable[[str], None], stop: launcher.Stop
) -> Installation:
    path = path_of(name, settings)
    return Installation(name=name, lock=LOCKS / f"{name}.txt", path=path, notify=notify, stop=stop)


def _install(installation: Installation, settings: Settings) -> None:
    """Install the toolchain, unless another process has done so meanwhile."""
    name, home = installation.name, installation.path.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        with installation.turn():
            if not installed(name, settings):
                installation.clear()
                installation.install(settings)
    except OSError as error:
        if error.errno in free_space.FULL:
            doing = f"toolchain `{name}` could not be installed"
            folders = free_space.of_installation(settings)
            raise free_space.error(folders, doing=doing, reason=str(error.strerror)) from error
        raise ToolchainError(
            f"toolchain `{name}` cannot be installed into `{home}`: {error.strerror}",
            hint="set PHIPIPE_TOOLCHAINS or PHIPIPE_CACHE to a folder that you can write",
        ) from error


def check(
    name: str,
    settings: Settings,
    notify: Callable[[str], None],
    stop: launcher.Stop = lambda: False,
) -> Installed:
    """Like ``ensure``, but looks for every single file first, and installs again where one is
    missing."""
    usable = ensure(name, settings, notify, stop)
    if settings.use_current:
        return usable
    missing = find_missing(usable.path)
    if missing is None:
        return usable
    notify(f"toolchain `{name}` has lost `{missing}`")
    (usable.path / STATE).unlink(missing_ok=True)
    return ensure(name, settings, notify, stop)


def remove(
    name: str, settings: Settings, notify: Callable[[str], None] = lambda line: None
) -> None:
    """Remove the toolchain, whatever its state, but not under the hands of whoever installs it."""
    installation = _installation(name, settings, notify, lambda: False)
    if installation.path.exists():
        with installation.turn():
            shutil.rmtree(installation.path, ignore_errors=True)


def size_bytes(name: str, settings: Settings) -> int:
    """Bytes that its files take (uv links them to its own cache where it can, so the disk may hold
    fewer)."""
    return sum(p.stat().st_size for p in path_of(name, settings).rglob("*") if p.is_file())
