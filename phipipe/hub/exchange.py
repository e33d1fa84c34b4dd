"""One GET over HTTP, with the library that the hub's own client brings: redirects, and who gets the
token."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

from phipipe.errors import SourceError
from phipipe.hub import failures, sockets
from phipipe.hub.failures import Fault, Patience, fault_of

REDIRECTS = 5
TWICE_BYTES = 2**20  # at most so many come again after a kill, over all connections
READ_BYTES = 2**16  # that the HTTP library takes from a connection at once
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Response(Protocol):
    """An answer of the HTTP library, whose content is still to come."""

    status_code: int
    headers: Mapping[str, str]
    extensions: Mapping[str, Any]

    def iter_raw(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class Client(Protocol):
    """A pool of connections of the HTTP library."""

    def build_request(self, method: str, url: str, *, headers: Mapping[str, str]) -> object: ...
    def send(self, request: object, *, stream: bool) -> Response: ...


@dataclass(frozen=True)
class Address:
    """Where a file is had. ``token`` goes to this URL's own host alone, as ``scheme`` has it;
    ``refuse`` words a final answer; ``patience`` is had with it, where it is no hub."""

    url: str
    refuse: Callable[[int, Mapping[str, str]], SourceError]
    token: str | None = None
    scheme: str = "Bearer"
    patience: Patience | None = None

    def __repr__(self) -> str:
        return f"Address({self.url!r})"  # never the token


def library() -> Any:
    """``huggingface_hub``, imported late. It sends no telemetry, and asks nothing of its own.

    Raises:
        SourceError: a variable of its own keeps it from being imported.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        for part in ("constants", "errors", "utils"):
            importlib.import_module(f"huggingface_hub.{part}")
        return importlib.import_module("huggingface_hub")
    except ValueError as error:
        raise SourceError(
            f"the hub's client does not start: {error}",
            hint="look at your environment variables that begin with HF_",
        ) from None


def http() -> Any:
    """The HTTP library that huggingface_hub brings: httpx, or its successor of the same
    interface."""
    return importlib.import_module(type(library().get_session()).__module__.partition(".")[0])


def client(connections: int = 1) -> contextlib.AbstractContextManager[Client]:
    """A pool for so many connections. Redirects are followed here, not there: they decide who gets
    a token."""
    pace = failures.PACE
    limits = http().Timeout(pace.stall_s, connect=min(pace.stall_s, 15.0), pool=None)
    unread = TWICE_BYTES // connections - 2 * READ_BYTES
    hooks = {"response": [lambda response: sockets.bound_unread(response, unread)]}
    pool: contextlib.AbstractContextManager[Client] = http().Client(
        follow_redirects=False, timeout=limits, event_hooks=hooks
    )
    return pool


def is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent to ``url``: TLS, or this very machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in LOOPBACK


@contextlib.contextmanager
def opened(pool: Client, address: Address, wanted: str | None) -> Iterator[Response]:
    """The answer to a GET of the range ``wanted`` (None: all), redirects followed.

    Raises:
        Fault: the exchange broke, here or while the caller reads.
        SourceError: a redirect leads to where no file can be had safely.
    """
    try:
        with contextlib.closing(_answer(pool, address, wanted)) as response:
            yield response
    except http().TransportError as error:
        raise fault_of(error) from None


def _answer(pool: Client, address: Address, wanted: str | None) -> Response:
    """The first answer that is no redirect; the token goes nowhere but to the first host."""
    url, headers = address.url, {"Accept-Encoding": "identity", "User-Agent": "phipipe"}
    if wanted:
        headers["Range"] = wanted
    for _ in range(REDIRECTS + 1):
        is_own = origin(url) == origin(address.url) and is_private(url)
        token = address.token if is_own else None
        own = {} if token is None else {"Authorization": f"{address.scheme} {token}"}
        response = pool.send(pool.build_request("GET", url, headers=headers | own), stream=True)
        if response.status_code not in (301, 302, 303, 307, 308):
            return response
        response.close()
        url = _redirected(url, response.headers.get("location", ""))
        if is_private(address.url) and not is_private(url):
            raise SourceError(
                "the server redirects to where anybody can read and change what is sent"
            )
    raise Fault(f"more than {REDIRECTS} redirects", attempts=2)


def _redirected(url: str, location: str) -> str:
    """Where ``location`` leads.

    Raises:
        SourceError: nowhere.
    """
    try:
        target = urljoin(url, location)
        http().URL(target)
        if urlsplit(target).scheme in ("http", "https") and urlsplit(target).port != 0:
            return target
    except (ValueError, http().InvalidURL):
        pass  # said below
    raise SourceError("the server redirects to what is no address on the web")


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: to whom a request goes."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
