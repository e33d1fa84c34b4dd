"""Starts a server over a finished package."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from phipipe.chat import start as chat_start
from phipipe.chat.peer import Peer
from phipipe.chat.serve import context_of
from phipipe.errors import RecipeError, ToolchainError
from phipipe.package import package
from phipipe.package.manifest_schema import Manifest
from phipipe.serving import address
from phipipe.serving.engine import Engine
from phipipe.serving.server import Server
from phipipe.settings import Settings

SERVE = "from phipipe.serving.answering import serve; serve()"
NEEDED = ("starlette", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a package is served.

    ``tokens``: of an answer, where a request does not say. ``context``: tokens of a prompt with its
    answer; None for the package's own. ``waiting``: requests that wait while one is answered.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    origins: Sequence[str] = ()
    tokens: int = 1024
    context: int | None = None
    waiting: int = 32


def begin(
    folder: Path, settings: Settings, note: Callable[[str], None], options: Options
) -> Server:
    """A server over the package in ``folder``, whose model is loaded and which listens; ``note``
    hears of every answer.

    Raises:
        RecipeError: an option makes no sense, or the port is in use.
        ToolchainError: the extra ``serve`` is not installed; or as ``chat.start.start``.
        PhipipeError: as ``chat.start.start``.
    """
    _check_installed()
    address.check_origins(options.origins)
    manifest = package.read_manifest(folder)
    _check_context(manifest, options.context)
    listening = address.bound(options.host, options.port)
    try:
        address.check_token(options.token, address.is_loopback(listening))
        request, installed = chat_start.opened(folder, settings, note, None, options.tokens)
        asked = {**request, "context": options.context}
        model = _Model(lambda: Peer(installed.python, asked, settings, SERVE), manifest)
        return _begun(model, note, options, listening)
    except BaseException:
        listening.close()
        raise


class _Model(NamedTuple):
    """What starts the model's process, and what its package says of itself."""

    begin: Callable[[], Peer]
    manifest: Manifest


def _begun(
    model: _Model, note: Callable[[str], None], options: Options, listening: socket.socket
) -> Server:
    from phipipe.serving import app, front  # the extra `serve`

    ends: list[Callable[[], None]] = []
    engine = Engine(model.begin, options.waiting, lambda: [end() for end in ends])
    service = app.Service(
        engine=engine,
        model=model.manifest.name,
        fingerprint=f"phipipe-{model.manifest.digest[:12]}",
        note=note,
    )
    hosts = None
    if address.is_loopback(listening):
        hosts = sorted(address.local_hosts(listening, options.host))
    application = app.application(service, hosts, options.token, options.origins)
    server = Server(listening, front.Front(application, engine), engine, model.manifest.name)
    ends.append(server.stop)
    return server


def _check_context(manifest: Manifest, asked: int | None) -> None:
    longest = context_of(manifest)
    if asked is not None and asked > longest:
        raise RecipeError(
            f"the package's context ends at {longest} tokens", hint=f"--context {longest}, or less"
        )


def _check_installed() -> None:
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ToolchainError(
                f"`serve` needs {name}, which is not installed",
                hint="pip install 'phipipe[serve]'",
            ) from None
