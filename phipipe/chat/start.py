"""Starts a talk with a finished package, in its backend's toolchain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from phipipe import backends
from phipipe.chat import process
from phipipe.package import package
from phipipe.settings import Settings
from phipipe.toolchains import environments


def start(
    folder: Path,
    settings: Settings,
    note: Callable[[str], None],
    *,
    prompt: str | None,
    system: str | None,
    tokens: int,
) -> int:
    """Talk to the package in ``folder`` inside its backend's toolchain, on our own stdin and
    stdout.

    Returns:
        The chat's exit code.

    Raises:
        SourceError: it is no package, was changed, holds what phipipe never packages, or its
            template or tokenizer takes more than it may.
        ToolchainError: its toolchain cannot be installed, or is damaged.
        StepFailed: its runtime refuses it.
        StepKilled: its process was ended: memory, signal.
    """
    manifest = package.open_(folder)
    name = backends.load(manifest.backend).toolchain
    installed = environments.ensure(name, settings, note)
    request = {
        "folder": str(folder.absolute()),
        "backend": manifest.backend,
        "toolchain": name,
        "prompt": prompt,
        "system": system,
        "tokens": tokens,
    }
    return process.hold(installed.python, request, settings)
