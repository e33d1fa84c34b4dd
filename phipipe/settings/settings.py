"""The settings of one process, from the environment and from files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.settings import config
from phipipe.settings.rows import BY_KEY, Value, checked


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user decides. Times in seconds, sizes in GiB; None is no limit."""

    cache: Path
    toolchains: Path
    use_current: bool = False  # toolchain = current: no environments of our own
    compute: str = "auto"  # what steps in PyTorch compute on: cpu, cuda, mps
    step_timeout_s: float | None = None
    idle_timeout_s: float | None = None  # no output, no progress and no CPU time for this long
    # of a step's whole process tree, files mapped into memory not counted
    memory_limit_gib: float | None = None
    preflight: bool = True  # off: runs that seem too large for this machine are tried
    keep_all: bool = True  # keep = artifacts: what is only on the way to packages goes
    copies_sources: bool = False  # sources = copy: local checkpoints enter the cache
    remote: str | None = None  # where results are shared with other machines
    remote_writes: bool = True  # remote_mode = read: take from there, give nothing
    trust: Path | None = None  # whose signature packages must have: a trust file
    # further import roots of step servers (tests keep their steps there)
    server_path: tuple[Path, ...] = ()

    @property
    def borrows_sources(self) -> bool:
        """Whether a local checkpoint is read where it lies. Machines that share a store need its
        content; on Windows, links are a privilege."""
        return not (self.copies_sources or self.remote is not None or os.name == "nt")

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings from ``environ`` and, where it does not say, from the project's file and the
        user's. A variable that is set to nothing counts as unset.

        Raises:
            RecipeError: a value makes no sense, or a file is wrong; says where.
        """
        found = {key: value.text for key, value in config.values(environ).items()}
        cache = Path(found["cache"]) if "cache" in found else default_cache()
        roots = found.get("worker_path", "").split(os.pathsep)
        return cls(
            cache=cache,
            toolchains=Path(found["toolchains"]) if "toolchains" in found else cache / "toolchains",
            use_current=found.get("toolchain") == "current",
            compute=found.get("compute", "auto"),
            step_timeout_s=_number(found, "step_timeout_s"),
            idle_timeout_s=_number(found, "idle_timeout_s"),
            memory_limit_gib=_number(found, "memory_limit_gib"),
            preflight=found.get("preflight") != "off",
            keep_all=found.get("keep") != "artifacts",
            copies_sources=found.get("sources") == "copy",
            remote=found.get("remote"),
            remote_writes=found.get("remote_mode") != "read",
            trust=Path(found["trust"]) if "trust" in found else None,
            server_path=tuple(Path(root).absolute() for root in roots if root),
        )


def compute(environ: Mapping[str, str] = os.environ) -> str:
    """``Settings.compute`` from the environment alone: steps ask, and what files say is there, too
    (``child_environment``).

    Raises:
        RecipeError: the variable makes no sense.
    """
    setting = BY_KEY["compute"]
    text = environ.get(setting.variable) or setting.default
    return checked(setting, Value(text=text, name=setting.variable, origin="environment"))


def default_cache() -> Path:
    """The folder for caches that this system has for phipipe."""
    from platformdirs import user_cache_path

    return user_cache_path("phipipe", appauthor=False)


def _number(found: Mapping[str, str], key: str) -> float | None:
    return float(found[key]) if key in found else None
