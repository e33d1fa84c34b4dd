"""Starts a talk with a finished package, in its backend's toolchain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from phipipe import backends
from phipipe.chat import process
from phipipe.chat.conversation import Conversation, clean
from phipipe.settings import Settings
from phipipe.signing import opening
from phipipe.steps import Json
from phipipe.toolchains import environments
from phipipe.toolchains.environments import Installed


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
    request, installed = opened(folder, settings, note, system, tokens)
    return process.hold(installed.python, {**request, "prompt": prompt}, settings)


def converse(
    folder: Path,
    settings: Settings,
    note: Callable[[str], None],
    *,
    system: str | None,
    tokens: int,
) -> Conversation:
    """Begin a conversation with the package in ``folder``, whose prompts come from Python.

    Raises:
        PhipipeError: as ``start``.
    """
    request, installed = opened(folder, settings, note, system, tokens)
    return Conversation(installed.python, request, settings)


def opened(
    folder: Path,
    settings: Settings,
    note: Callable[[str], None],
    system: str | None,
    tokens: int,
) -> tuple[dict[str, Json], Installed]:
    """What a chat's process is asked for, and its toolchain, once the package has passed.

    Raises:
        SourceError, ToolchainError: as ``start``.
    """
    manifest = opening.open_(folder, note)
    name = backends.load(manifest.backend).toolchain
    installed = environments.ensure(name, settings, note)
    request = {
        "folder": str(folder.absolute()),
        "backend": manifest.backend,
        "toolchain": name,
        "system": None if system is None else clean(system),
        "tokens": tokens,
    }
    return request, installed
