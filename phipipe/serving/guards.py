"""Who may ask: checks that come before any request is read.

A page in a browser can send requests to this machine's own servers. Three things keep it out: it
cannot pretend to be this machine's name (DNS rebinding: the ``Host`` header is checked), it cannot
send JSON to another origin unasked (``app`` takes nothing else), and it cannot read answers (CORS
is off).
"""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from phipipe.serving.bodies import dumped
from phipipe.serving.refusals import Refusal

OPEN = ("/health",)  # what needs no token


def refused(refusal: Refusal) -> Response:
    """``refusal`` as a response."""
    return Response(
        dumped(refusal.document()),
        refusal.status,
        headers=refusal.headers,
        media_type="application/json",
    )


class Hosts:
    """Answers requests to one of ``hosts`` alone."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and host_of(_header(scope, b"host")) not in self._hosts:
            refusal = Refusal(
                403, "this server answers to its own address alone", code="host_not_allowed"
            )
            await refused(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class Tokens:
    """Answers requests that bring the ``token``."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            kind, _, given = _header(scope, b"authorization").partition(b" ")
            is_right = hmac.compare_digest(given.strip(), self._token)
            if kind.lower() != b"bearer" or not is_right:
                refusal = Refusal(
                    401,
                    "the token is missing or wrong: `Authorization: Bearer TOKEN`",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refused(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_of(header: bytes) -> str:
    """The name or address in a ``Host`` header, without its port, in small letters."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if ":" in text else text


def _header(scope: Scope, name: bytes) -> bytes:
    found = [bytes(value) for key, value in scope["headers"] if key == name]
    return found[0] if len(found) == 1 else b""
