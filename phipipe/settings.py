"""The environment: the one place where ``PHIPIPE_*`` variables are read, and what of it our children get."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe import user_paths
from phipipe.errors import RecipeError

OFFLINE = dict.fromkeys(
    (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "DO_NOT_TRACK",
    ),
    "1",
) | {"HF_TOKEN_PATH": os.devnull}
SECRET = re.compile(
    r"(^|_)TOKENS?(_|\d|$)|(^|_)(PAT|PWD|PASS|KEY)$|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL"
    r"|API_?KEY|ACCESS_KEY|^(AWS|AZURE)_",
    re.IGNORECASE,
)
REMOTES = ("s3://", "gs://", "az://", "abfs://", "file:///")
PASSWORD_IN_URL = re.compile(r"://[^/\s@]+@")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment decides. Times in seconds, sizes in GiB; None is no limit."""

    cache: Path
    toolchains: Path
    use_current: bool = False  # PHIPIPE_TOOLCHAIN=current: no environments of our own
    step_timeout_s: float | None = None
    idle_timeout_s: float | None = None  # no output, no progress and no CPU time for this long
    memory_limit_gib: float | None = None  # of a step's whole process tree, files mapped into memory not counted
    preflight: bool = True  # PHIPIPE_PREFLIGHT=off: runs that seem too large for this machine are tried
    remote: str | None = None  # PHIPIPE_REMOTE: where results are shared with other machines
    remote_writes: bool = True  # PHIPIPE_REMOTE_MODE=read: take from there, give nothing
    worker_path: tuple[Path, ...] = ()  # further import roots of workers (tests keep their steps there)

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings from ``environ``. A variable that is set to nothing counts as unset.

        Raises:
            RecipeError: a variable's value makes no sense; names it.
        """
        cache = _folder(environ, "PHIPIPE_CACHE") or _default()
        choice = environ.get("PHIPIPE_TOOLCHAIN", "")
        if choice not in ("", "current"):
            raise RecipeError(f"PHIPIPE_TOOLCHAIN is `{choice}`", hint="set it to `current`, or not at all")
        preflight = environ.get("PHIPIPE_PREFLIGHT", "")
        if preflight not in ("", "on", "off"):
            raise RecipeError(f"PHIPIPE_PREFLIGHT is `{preflight}`", hint="set it to `off`, or not at all")
        mode = environ.get("PHIPIPE_REMOTE_MODE", "")
        if mode not in ("", "read", "write"):
            raise RecipeError(f"PHIPIPE_REMOTE_MODE is `{mode}`", hint="set it to `read`, `write`, or not at all")
        roots = environ.get("PHIPIPE_WORKER_PATH", "").split(os.pathsep)
        return cls(
            cache=cache,
            toolchains=_folder(environ, "PHIPIPE_TOOLCHAINS") or cache / "toolchains",
            use_current=choice == "current",
            step_timeout_s=_positive(environ, "PHIPIPE_STEP_TIMEOUT_S"),
            idle_timeout_s=_positive(environ, "PHIPIPE_IDLE_TIMEOUT_S"),
            memory_limit_gib=_positive(environ, "PHIPIPE_MEMORY_LIMIT_GIB"),
            preflight=preflight != "off",
            remote=_remote(environ),
            remote_writes=mode != "read",
            worker_path=tuple(Path(root).absolute() for root in roots if root),
        )


def given(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the user has set of our own variables: none of them may hold a secret."""
    return {name: value for name, value in sorted(environ.items()) if name.startswith("PHIPIPE_") and value}


def child_environment(*, offline: bool, keep_path: bool = False) -> dict[str, str]:
    """Our environment without secrets and, ``offline``, with every hub client told to stay off the network."""
    kept = {n: v for n, v in os.environ.items() if n == "PWD" or not (SECRET.search(n) or PASSWORD_IN_URL.search(v))}
    dropped = {"PYTHONDONTWRITEBYTECODE"}  # containers set it, and then torch compiles for 10 s in every worker
    dropped |= set() if keep_path else {"PYTHONPATH", "PYTHONHOME"}  # the toolchain decides what can be imported
    kept = {name: value for name, value in kept.items() if name not in dropped}
    kept |= {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    return kept | (OFFLINE if offline else {})


def _default() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("phipipe", appauthor=False)


def _folder(environ: Mapping[str, str], name: str) -> Path | None:
    text = environ.get(name)
    if not text:
        return None
    folder = Path(os.path.expanduser(text)).absolute()  # noqa: PTH111 (Path's raises where there is no such user)
    if odd := user_paths.problem(folder, user_paths.Kind.NEW_FOLDER, text):
        raise RecipeError(
            f"{name} is `{user_paths.shown(text)}`, which {odd}", hint="give a folder's path; it may not exist yet"
        )
    return folder


def _remote(environ: Mapping[str, str]) -> str | None:
    url = environ.get("PHIPIPE_REMOTE")
    if not url:
        return None
    if PASSWORD_IN_URL.search(url):
        raise RecipeError(
            "PHIPIPE_REMOTE holds credentials", hint="give them as the provider's own variables (AWS_ACCESS_KEY_ID …)"
        )
    if not url.startswith(REMOTES):
        raise RecipeError(
            f"PHIPIPE_REMOTE is `{url}`", hint=f"give an address that starts with {', '.join(REMOTES)}, or unset it"
        )
    return url.rstrip("/")


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
