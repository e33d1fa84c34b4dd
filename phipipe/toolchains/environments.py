"""The isolated environment of a backend: made by uv from a lock, on first use, beside all the
others.

A toolchain's folder is named by its lock and Python; a state file, written last, says what is in
it. That list (name → version) is the fingerprint in keys and provenance.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe import hardware
from phipipe.errors import PhipipeError, ToolchainError
from phipipe.processes import launcher
from phipipe.settings import Settings, installer_environment
from phipipe.store import free_space

LOCKS = Path(__file__).parent
STATE = "phipipe-toolchain.json"
# uv waits that long for another that compiles the same package; its own 300 s are too few for
# llama.cpp
LOCK_S = 3600
# Never installed, although a package asks for it: optimum-intel uses torchvision for pictures only,
# and the registry's build for CUDA breaks `import transformers` beside a torch for CPUs.
EXCLUDED = ("torchvision",)
# Toolchains whose main package has builds for some systems only: (system, machine) as ``platform``
# names them.
WINDOWS, LINUX = ("Windows", "AMD64"), ("Linux", "x86_64")
ONLY: Mapping[str, tuple[tuple[str, str], ...]] = {
    "qnn": (WINDOWS, ("Windows", "ARM64"), LINUX),
    "onnxruntime-cuda": (WINDOWS, LINUX),
    "mlx": (("Darwin", "arm64"), LINUX, ("Linux", "aarch64")),
}
NETWORK = "check the network and package index settings"
COMPILER = (
    "this package is compiled here: install a C and C++ compiler (Debian, Ubuntu: "
    "build-essential; Fedora: gcc-c++; "
    "macOS: xcode-select --install; Windows: Visual Studio Build Tools with C++)"
)
# Any of these says that the user decides where packages come from, torch included.
INDEX_SETTINGS = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_TORCH_BACKEND",
)


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


def path_of(name: str, settings: Settings) -> Path:
    """Where toolchain ``name`` lies, installed or not.

    Raises:
        ToolchainError: there is no such toolchain.
    """
    lock = LOCKS / f"{name}.txt"
    if name not in names():
        raise ToolchainError(
            f"unknown toolchain `{name}`", hint=f"toolchains: {', '.join(names())}"
        )
    told = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    return settings.toolchains / f"{name}-{told}-py{sys.version_info.major}{sys.version_info.minor}"


def installed(name: str, settings: Settings) -> Installed | None:
    """The toolchain if it is there, by a look that takes milliseconds: state, interpreter, package
    folders."""
    if settings.use_current:
        return _current(name)
    path = path_of(name, settings)
    try:
        packages = (
            json.loads((path / STATE).read_text("utf-8"))["packages"]
            if (path / STATE).is_file()
            else None
        )
        if packages is None or not _python(path).exists() or _listed(path) != packages:
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Installed(name=name, python=_python(path), packages=packages, path=path)


def foreign(name: str) -> str | None:
    """Where toolchain ``name`` exists, in words, if that is not here; None if it exists here."""
    places = ONLY.get(name)
    if places is None or (platform.system(), platform.machine()) in places:
        return None
    return " and ".join(f"{system} on {machine}" for system, machine in places)


def is_useful(name: str) -> bool:
    """Whether toolchain ``name`` is of use here: it exists for this system, and what it computes on
    is there."""
    return foreign(name) is None and (not name.endswith("-cuda") or _has_nvidia())


def ensure(
    name: str,
    settings: Settings,
    notify: Callable[[str], None],
    stop: launcher.Stop = lambda: False,
) -> Installed:
    """The toolchain, installed first if it has to be. Of several processes one installs, the others
    wait.

    Raises:
        ToolchainError: it cannot be installed; nothing is left behind.
        Interrupted: ``stop`` said so, meanwhile.
    """
    if found := installed(name, settings):
        return found
    if elsewhere := foreign(name):
        raise ToolchainError(
            f"toolchain `{name}` exists for {elsewhere} only; this is {platform.system()} on "
            f"{platform.machine()}",
            hint="build there; the package runs on its device all the same",
        )
    path = path_of(name, settings)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(name, path, notify, stop):
            if found := installed(name, settings):
                return found
            _clear(name, path, notify)
            _install(name, path, settings, notify, stop)
    except OSError as error:
        if error.errno in free_space.FULL:
            doing = f"toolchain `{name}` could not be installed"
            raise free_space.error(
                free_space.of_installation(settings), doing=doing, reason=str(error.strerror)
            ) from error
        raise ToolchainError(
            f"toolchain `{name}` cannot be installed into `{path.parent}`: {error.strerror}",
            hint="set PHIPIPE_TOOLCHAINS or PHIPIPE_CACHE to a folder that you can write",
        ) from error
    found = installed(name, settings)
    if found is None:
        raise ToolchainError(
            f"toolchain `{name}` is not what was installed", hint="run the same command again"
        )
    return found


@contextlib.contextmanager
def _turn(
    name: str, path: Path, notify: Callable[[str], None], stop: launcher.Stop
) -> Iterator[None]:
    """While this lasts, nobody else installs or removes the toolchain, nor does what was left of
    somebody who did."""

    def waits(seconds: float) -> None:
        words = "still waiting" if seconds >= 1 else "waiting"
        notify(f"{words} for another process to install toolchain `{name}` ({seconds:.0f} s)")

    with launcher.alone(path.with_suffix(".lock"), waits, stop):
        with launcher.alone(_busy(path), waits, stop):  # whoever was killed may not be gone yet
            pass
        yield


def _busy(path: Path) -> Path:
    """What is locked while some process works in the toolchain's folder ``path``."""
    return path.with_suffix(".busy")


def _temporary(path: Path) -> Path:
    return path.with_suffix(".tmp")


def _clear(name: str, path: Path, notify: Callable[[str], None]) -> None:
    """Say what comes; remove what an installation that was cut off has left."""
    launcher.end_strays("uv", path)
    shutil.rmtree(_temporary(path), ignore_errors=True)
    if not path.exists():
        notify(f"installing toolchain `{name}` (once)")
        return
    notify(f"toolchain `{name}` is incomplete, installing it again")
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        raise ToolchainError(
            f"what is left of toolchain `{name}` cannot be removed from `{path}`",
            hint="remove that folder yourself",
        )


def check(
    name: str,
    settings: Settings,
    notify: Callable[[str], None],
    stop: launcher.Stop = lambda: False,
) -> Installed:
    """Like ``ensure``, but looks for every single file first, and installs again where one is
    missing."""
    found = ensure(name, settings, notify, stop)
    if settings.use_current:
        return found
    missing = _missing(found.path)
    if missing is None:
        return found
    notify(f"toolchain `{name}` has lost `{missing}`")
    (found.path / STATE).unlink(missing_ok=True)
    return ensure(name, settings, notify, stop)


def remove(
    name: str, settings: Settings, notify: Callable[[str], None] = lambda line: None
) -> None:
    """Remove the toolchain, whatever its state, but not under the hands of whoever installs it."""
    path = path_of(name, settings)
    if path.exists():
        with _turn(name, path, notify, lambda: False):
            shutil.rmtree(path, ignore_errors=True)


def size_bytes(name: str, settings: Settings) -> int:
    """Bytes that its files take (uv links them to its own cache where it can, so the disk may hold
    fewer)."""
    return sum(p.stat().st_size for p in path_of(name, settings).rglob("*") if p.is_file())


def _install(
    name: str, path: Path, settings: Settings, notify: Callable[[str], None], stop: launcher.Stop
) -> None:
    import uv

    tool, environment, lock, excludes = (
        uv.find_uv_bin(),
        _environment(),
        LOCKS / f"{name}.txt",
        path.with_suffix(".excludes"),
    )
    make = [tool, "venv", "--quiet", "--no-project", "--python", sys.executable, str(path)]
    fill = [tool, "pip", "install", "--quiet", "--python", str(_python(path))]
    fill += ["--requirements", str(lock), "--excludes", str(excludes)]
    if not any(environment.get(setting) for setting in INDEX_SETTINGS) and not _has_nvidia():
        fill += ["--torch-backend", "cpu"]
    where = {"busy": _busy(path), "temporary": _temporary(path)}
    job = launcher.Job(
        commands=(make, fill), environment=environment, remove=(path, excludes), **where
    )
    try:
        excludes.write_text("\n".join(EXCLUDED) + "\n", "utf-8")
        code, said = launcher.run(
            job, lambda s: notify(f"still installing toolchain `{name}` ({s:.0f} s)"), stop
        )
        if code:
            raise _failed(name, settings, code, said)
        state = {"packages": _listed(path)}
        (path / f"{STATE}.tmp").write_text(json.dumps(state, indent=1), "utf-8")
        (path / f"{STATE}.tmp").replace(path / STATE)
    except BaseException:  # Ctrl-C included: no half environment stays
        launcher.end_strays(Path(tool).stem, path)
        shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        excludes.unlink(missing_ok=True)
        shutil.rmtree(_temporary(path), ignore_errors=True)


def _environment() -> dict[str, str]:
    """What uv gets."""
    made = installer_environment()
    made |= uv_environment(made)
    made.setdefault(
        "CMAKE_BUILD_PARALLEL_LEVEL", str(hardware.cores())
    )  # llama.cpp is compiled here
    made.setdefault(
        "CMAKE_ARGS", "-DLLAVA_BUILD=OFF"
    )  # without its part for pictures, which we do not use
    made.setdefault("UV_LOCK_TIMEOUT", str(LOCK_S))
    return made


def _failed(name: str, settings: Settings, code: int, said: str) -> PhipipeError:
    if free_space.SAID.search(said):
        last = next(
            line for line in reversed(redact(said).splitlines()) if free_space.SAID.search(line)
        ).strip()
        return free_space.error(
            free_space.of_installation(settings),
            doing=f"toolchain `{name}` could not be installed",
            reason=last,
        )
    lines = [line.strip() for line in redact(said).splitlines() if line.strip()] or [
        f"uv ended with code {code}"
    ]
    remedy = COMPILER if any("COMPILER not set" in line for line in lines) else NETWORK
    return ToolchainError(
        f"toolchain `{name}` could not be installed:\n  " + "\n  ".join(lines[-8:]),
        hint=f"{remedy}, then phipipe toolchain install {name}",
    )


def redact(text: str) -> str:
    """``text`` without user names and passwords in URLs."""
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", text)


def uv_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """uv's own variables for settings that the user has made for pip, where uv has none."""
    pairs = {
        "PIP_FIND_LINKS": "UV_FIND_LINKS",
        "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
        "PIP_EXTRA_INDEX_URL": "UV_INDEX",
        "PIP_CERT": "SSL_CERT_FILE",
    }
    made = {
        uv: environ[pip] for pip, uv in pairs.items() if environ.get(pip) and not environ.get(uv)
    }
    if "UV_FIND_LINKS" in made:  # pip separates by spaces, uv by commas
        made["UV_FIND_LINKS"] = ",".join(made["UV_FIND_LINKS"].split())
    return made


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _python(path: Path) -> Path:
    return (
        path / "Scripts" / "python.exe"
        if platform.system() == "Windows"
        else path / "bin" / "python"
    )


def _site(path: Path) -> Path:
    if platform.system() == "Windows":
        return path / "Lib" / "site-packages"
    return (
        path / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    )


def _listed(path: Path) -> dict[str, str]:
    """Name → version from the names of the ``*.dist-info`` folders alone."""
    found = {}
    for entry in os.scandir(_site(path)):
        if entry.name.endswith(".dist-info"):
            name, _, version = entry.name.removesuffix(".dist-info").partition("-")
            found[name.lower().replace("_", "-")] = version
    return dict(sorted(found.items()))


def _missing(path: Path) -> str | None:
    """The first file that some package's RECORD names and that is not there with its size; None if
    all are."""
    site = _site(path)
    for record in sorted(folder / "RECORD" for folder in site.glob("*.dist-info")):
        if not record.is_file():
            return f"{record.parent.name}/RECORD"
        with record.open(encoding="utf-8", newline="") as stream:
            for name, _, size, *_ in csv.reader(stream):
                try:
                    found = os.stat(f"{site}/{name}").st_size  # noqa: PTH116 (20,000 files: Path is slow)
                except OSError:
                    found = -1
                if found < 0 or (size and found != int(size)):
                    if name.endswith((".pyc", "__pycache__/")):
                        continue
                    return name
    return None


def _current(name: str) -> Installed:
    """The running interpreter's own packages; the user answers for what is in it."""
    path_of(name, Settings(cache=Path(), toolchains=Path()))  # an unknown name is still an error
    packages = {}
    for distribution in importlib.metadata.distributions():
        with contextlib.suppress(KeyError, TypeError):
            packages[str(distribution.metadata["Name"]).lower().replace("_", "-")] = (
                distribution.version
            )
    return Installed(
        name=name,
        python=Path(sys.executable),
        packages=dict(sorted(packages.items())),
        path=Path(sys.prefix),
    )
