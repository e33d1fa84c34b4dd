"""Commands of apps on this machine: whether they are there, and what they say."""

from __future__ import annotations

import shutil
import subprocess

from phipipe.errors import StepFailed

LOOK_S = 20  # a look into an app's own list
RUN_S = 3600  # copying a model of many gigabytes
MAX_SHOWN = 400  # characters of what a command said


def is_here(name: str) -> bool:
    """Whether the command ``name`` is on the path."""
    return shutil.which(name) is not None


def output(name: str, *words: str) -> str | None:
    """What a command prints; None where it is not there, fails, or takes more than ``LOOK_S``."""
    try:
        ended = _ended(name, words, LOOK_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout if ended.returncode == 0 else None


def run(name: str, *words: str) -> None:
    """Run a command to its end.

    Raises:
        StepFailed: it cannot be started, fails, or takes more than ``RUN_S``; says what it said.
    """
    shown = " ".join((name, *words))
    try:
        ended = _ended(name, words, RUN_S)
    except OSError as error:
        raise StepFailed(f"`{name}` cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise StepFailed(f"`{shown}` took more than {RUN_S} s") from None
    if ended.returncode:
        said = " ".join((ended.stderr or ended.stdout).split())[-MAX_SHOWN:]
        raise StepFailed(
            f"`{shown}` failed with exit code {ended.returncode}: {said or 'it said nothing'}",
            hint=f"see that {name} runs on this machine",
        )


def _ended(name: str, words: tuple[str, ...], seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which(name) or name, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
        check=False,
    )
