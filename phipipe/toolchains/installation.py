"""One toolchain made by uv in its folder, whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from phipipe import hardware, progress
from phipipe.errors import PhipipeError, ToolchainError
from phipipe.processes import launcher
from phipipe.settings import Settings
from phipipe.store import free_space
from phipipe.toolchains import compiling, uv_settings
from phipipe.toolchains.contents import list_packages, python_of
from phipipe.words import counted

STATE = "phipipe-toolchain.json"
# Toolchains whose torch computes on a GPU: where NVIDIA's driver is, uv takes the build that suits
# it. All others have the build for CPUs, which takes a tenth of the room.
ON_GPU = ("torch",)
NETWORK = "check the network and package index settings"
COMPILER = (
    "this package is compiled here: install a C and C++ compiler (Debian, Ubuntu: "
    "build-essential; Fedora: gcc-c++; "
    "macOS: xcode-select --install; Windows: Visual Studio Build Tools with C++)"
)


@dataclass(frozen=True, kw_only=True)
class Installation:
    """Toolchain ``name``, as ``lock`` has it, in the folder ``path``.

    ``notify`` is told what is going on; ``stop`` says whether somebody wants the end. ``links`` is
    a folder with wheels that are taken before those of an index; ``more`` are words for `uv pip
    install`.
    """

    name: str
    lock: Path
    path: Path
    notify: Callable[[str], None]
    stop: launcher.Stop
    links: Path | None = None
    more: tuple[str, ...] = ()

    @property
    def _busy(self) -> Path:
        """What is locked while some process works in the folder."""
        return self.path.with_suffix(".busy")

    @property
    def _temporary(self) -> Path:
        return self.path.with_suffix(".tmp")

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """While this lasts, nobody else installs or removes the toolchain, nor does what was left
        of somebody who did.

        Raises:
            Interrupted: ``stop`` said so.
            OSError: the folder cannot be written.
        """

        def wait(seconds: float) -> None:
            words = "still waiting" if seconds >= 1 else "waiting"
            self.notify(
                f"{words} for another process to install toolchain `{self.name}` ({seconds:.0f} s)"
            )

        with launcher.alone(self.path.with_suffix(".lock"), wait, self.stop):
            # whoever was killed may not be gone yet
            with launcher.alone(self._busy, wait, self.stop):
                pass
            yield

    def clear(self) -> None:
        """Say what comes; remove what an installation that was cut off has left."""
        launcher.end_strays("uv", self.path)
        shutil.rmtree(self._temporary, ignore_errors=True)
        if not self.path.exists():
            self.notify(f"installing toolchain `{self.name}` (once)")
            return
        self.notify(f"toolchain `{self.name}` is incomplete, installing it again")
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.exists():
            raise ToolchainError(
                f"what is left of toolchain `{self.name}` cannot be removed from `{self.path}`",
                hint="remove that folder yourself",
            )

    def install(self, settings: Settings) -> None:
        """Make the environment; its state is written last.

        Raises:
            ToolchainError: uv fails; nothing is left behind.
            StoreError: there is no room.
            Interrupted: ``stop`` said so.
        """
        import uv

        tool, excludes = uv.find_uv_bin(), self.path.with_suffix(".excludes")
        try:
            excludes.write_text("\n".join(uv_settings.EXCLUDED) + "\n", "utf-8")
            listener = _Compiler(self)
            job = self._job(tool, excludes)
            code, output = launcher.run(job, listener.say_still, self.stop, listener.hear)
            if code:
                raise _failure(self.name, settings, code, output)
            state = {"packages": list_packages(self.path)}
            (self.path / f"{STATE}.tmp").write_text(json.dumps(state, indent=1), "utf-8")
            (self.path / f"{STATE}.tmp").replace(self.path / STATE)
        except BaseException:  # Ctrl-C included: no half environment stays
            launcher.end_strays(Path(tool).stem, self.path)
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        finally:
            excludes.unlink(missing_ok=True)
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _job(self, tool: str, excludes: Path) -> launcher.Job:
        environment = uv_settings.environment()
        make = [tool, "venv", "--quiet", "--no-project", "--python", sys.executable, str(self.path)]
        # verbose, or the compiler would not be heard
        fill = [tool, "pip", "install", "--verbose", "--python", str(python_of(self.path))]
        fill += ["--requirements", str(self.lock), "--excludes", str(excludes), *self.more]
        is_chosen = any(environment.get(setting) for setting in uv_settings.INDEX_SETTINGS)
        if not is_chosen:
            on_gpu = self.name in ON_GPU and has_nvidia()
            fill += ["--torch-backend", "auto" if on_gpu else "cpu"]
        if self.links:
            named = (str(self.links), environment.get("UV_FIND_LINKS", ""))
            environment["UV_FIND_LINKS"] = ",".join(filter(None, named))
        return launcher.Job(
            commands=(make, fill),
            environment=environment,
            remove=(self.path, excludes),
            busy=self._busy,
            temporary=self._temporary,
        )


class _Compiler:
    """Who listens to the compiler of an installation, and says how far it is."""

    def __init__(self, installation: Installation) -> None:
        self._name, self._notify = installation.name, installation.notify
        self._last: compiling.Done | None = None

    def hear(self, line: str) -> None:
        """A line of uv's."""
        done = compiling.read(line)
        if done is None:
            return
        if self._last is None:
            cores = counted(hardware.cores(), "core")
            self._notify(f"compiling for toolchain `{self._name}` with {cores}; this takes minutes")
        self._last = done
        progress.report(done.done, done.total, compiling.UNIT)

    def say_still(self, seconds: float) -> None:
        """So many seconds have passed."""
        done = self._last
        share = f", {done.done} of {done.total} {compiling.UNIT}" if done else ""
        self._notify(f"still installing toolchain `{self._name}` ({seconds:.0f} s{share})")


def _failure(name: str, settings: Settings, code: int, output: str) -> PhipipeError:
    """What uv's ``output``, with which it ended, means for the user."""
    lines = [
        line.strip()
        for line in uv_settings.redact(output).splitlines()
        if line.strip() and not compiling.is_log(line)
    ]
    full = [line for line in lines if free_space.SAID.search(line)]
    if full:
        doing = f"toolchain `{name}` could not be installed"
        return free_space.error(free_space.of_installation(settings), doing=doing, reason=full[-1])
    remedy = COMPILER if any("COMPILER not set" in line for line in lines) else NETWORK
    lines = lines or [f"uv ended with code {code}"]
    return ToolchainError(
        f"toolchain `{name}` could not be installed:\n  " + "\n  ".join(lines[-8:]),
        hint=f"{remedy}, then phipipe toolchain install {name}",
    )


def has_nvidia() -> bool:
    """Whether this machine has NVIDIA's driver."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
