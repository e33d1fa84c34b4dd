"""The one place where ``PHIPIPE_*`` variables are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment decides. Times in seconds, sizes in GiB; None is no limit."""

    cache: Path
    toolchains: Path
    use_current: bool = False  # PHIPIPE_TOOLCHAIN=current: no environments of our own
    step_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    memory_limit_gib: float | None = None

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings from ``environ``.

        Raises:
            RecipeError: a variable's value makes no sense; names it.
        """
        cache = Path(environ["PHIPIPE_CACHE"]).expanduser().absolute() if environ.get("PHIPIPE_CACHE") else _default()
        toolchains = environ.get("PHIPIPE_TOOLCHAINS")
        choice = environ.get("PHIPIPE_TOOLCHAIN", "")
        if choice not in ("", "current"):
            raise RecipeError(f"PHIPIPE_TOOLCHAIN is `{choice}`", hint="set it to `current`, or not at all")
        return cls(
            cache=cache,
            toolchains=Path(toolchains).expanduser().absolute() if toolchains else cache / "toolchains",
            use_current=choice == "current",
            step_timeout_s=_positive(environ, "PHIPIPE_STEP_TIMEOUT_S"),
            idle_timeout_s=_positive(environ, "PHIPIPE_IDLE_TIMEOUT_S"),
            memory_limit_gib=_positive(environ, "PHIPIPE_MEMORY_LIMIT_GIB"),
        )


def _default() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("phipipe", appauthor=False)


def _positive(environ: Mapping[str, str], name: str) -> float | None:
    text = environ.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise RecipeError(f"{name} is `{text}`", hint="give a number above 0, or unset it")
    return value
