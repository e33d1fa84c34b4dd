"""Where a server listens, and who may ask it there."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Iterable

from phipipe.errors import RecipeError
from phipipe.suggestions import shorten

NEXT_PORTS = 100  # that are tried for the one that an error names
MIN_TOKEN = 16  # characters
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` at ``port``; 0 is any that is free.

    Raises:
        RecipeError: there is no such address here, or the port is in use.
    """
    family, address = _resolved(host)
    try:
        return _listening(family, address, port)
    except OSError as error:
        if not _is_taken(family, address, port):
            raise RecipeError(
                f"cannot listen on `{shorten(host)}`, port {port}: {error.strerror}",
                hint="--port 8080, or --port 0 for any that is free",
            ) from None
        free = _next_free(family, address, port)
        hint = f"--port {free}" if free else "--port 0 takes any that is free"
        raise RecipeError(f"port {port} is in use", hint=hint) from None


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def local_hosts(listening: socket.socket, host: str) -> set[str]:
    """The names by which this machine may ask a server on loopback; ``host`` is what it was told
    to listen on."""
    return {*LOCAL_NAMES, host.lower(), str(listening.getsockname()[0])}


def base_url(listening: socket.socket) -> str:
    """What clients take as base URL: a server on all addresses by its loopback one."""
    address, port = listening.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://[{name}]:{port}/v1" if ":" in name else f"http://{name}:{port}/v1"


def check_token(token: str | None, is_local: bool) -> None:
    """Refuse a server that others can reach without a token, and a token that can be guessed.

    Raises:
        RecipeError: it is one.
    """
    if token is None:
        if not is_local:
            raise RecipeError(
                "others could ask this server: it needs a token",
                hint="put one into an environment variable and name it: --token-env NAME",
            )
        return
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise RecipeError(
            f"the token needs {MIN_TOKEN} printable characters or more, and no space",
            hint="python -c 'import secrets; print(secrets.token_urlsafe())' makes one",
        )


def check_origins(origins: Iterable[str]) -> None:
    """Refuse what is no page's origin.

    Raises:
        RecipeError: one is none.
    """
    for origin in origins:
        scheme, found, rest = origin.partition("://")
        if origin not in ("*", "null") and not (found and scheme and rest and "/" not in rest):
            raise RecipeError(
                f"`{shorten(origin)}` is no origin", hint="--allow-origin http://localhost:3000"
            )


def _resolved(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        found = []
    if not host or not found:
        raise RecipeError(
            f"`{shorten(host)}` is no address of this machine", hint="--host 127.0.0.1"
        )
    first = min(found, key=lambda one: one[0] != socket.AF_INET)  # of localhost: what apps try
    return first[0], str(first[4][0])


def _listening(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # there, the other option would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(128)  # from now on the port is ours, and clients wait
    except BaseException:
        listening.close()
        raise
    return listening


def _is_taken(family: socket.AddressFamily, address: str, port: int) -> bool:
    """Whether it is this port alone that cannot be had."""
    if not port:
        return False
    with contextlib.suppress(OSError):
        _listening(family, address, 0).close()
        return port >= 1024 or _answers(family, address, port)
    return False


def _answers(family: socket.AddressFamily, address: str, port: int) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as asking:
        asking.settimeout(1.0)
        return asking.connect_ex((address, port)) == 0


def _next_free(family: socket.AddressFamily, address: str, port: int) -> int | None:
    for number in range(port + 1, min(port + 1 + NEXT_PORTS, 2**16)):
        with contextlib.suppress(OSError):
            _listening(family, address, number).close()
            return number
    return None
