"""Requests to an OCI registry, with the HTTP library that the hub's client brings: who asks, what
is tried again, what a refusal means.

Why not a client library: the Python ones read whole blobs into memory, know no timeouts, or send
tokens wherever a registry points.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.hub import exchange, failures
from phipipe.hub.client import ASKS
from phipipe.hub.exchange import Address, is_private, origin
from phipipe.hub.failures import Patience, fault_of, patiently, status_error
from phipipe.package.manifest import MAX_BYTES
from phipipe.publishing import credentials
from phipipe.recipe.addresses import RegistryAddress

T = TypeVar("T")
HOSTS = {credentials.DOCKER_HUB: "registry-1.docker.io"}  # names of registries that are no hosts
LOGIN = (
    "`docker login HOST`, or set OCI_REGISTRY, OCI_USERNAME and OCI_PASSWORD to an account that may"
)
Content = Callable[[], Iterable[bytes]]
"""Makes the body of a request, each time that it is sent."""


@dataclass(frozen=True)
class Answer:
    """What a registry answered; ``body`` is cut where it is longer than any manifest."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Request:
    """What a registry is asked; ``content`` has ``size`` bytes."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Content | None = None
    size: int = 0


class Expired(SourceError):
    """The registry no longer knows who asks: it may if asked who does again."""


class Registry:
    """The repository of ``address`` in its registry. Use it in one thread alone."""

    def __init__(self, address: RegistryAddress, note: Callable[[str], None]) -> None:
        """``note`` hears of waits."""
        self.address, self._patience = address, Patience(note)
        scheme = "http" if address.is_local else "https"
        self.base = f"{scheme}://{HOSTS.get(address.host, address.host)}"
        self._shown: tuple[str, str] | None = None  # scheme and what follows it
        self._answering: set[tuple[str, str | None, int | None]] = set()  # origins that did
        http, pace = exchange.http(), failures.PACE
        limits = http.Timeout(pace.stall_s, connect=min(pace.stall_s, 15.0))
        self.pool: Any = http.Client(follow_redirects=False, timeout=limits)

    def close(self) -> None:
        """Close its connections."""
        self.pool.close()

    def url(self, path: str) -> str:
        """Where ``path`` of the repository is."""
        return f"{self.base}/v2/{self.address.repository}/{path}"

    def file(self, digest: str) -> Address:
        """Where a blob is had, by who was let in last."""
        scheme, token = self._shown or ("Bearer", None)
        return Address(self.url(f"blobs/{digest}"), self._refuse, token, scheme, self._patience)

    def ask(
        self,
        method: str,
        path: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        expected: tuple[int, ...] = (200, 404),
    ) -> Answer:
        """The answer to a request about ``path`` of the repository, one of ``expected``; tried
        again where it may help. ``what`` begins the sentence, if it is in vain.

        Raises:
            SourceError: it refuses, or fails too often.
        """
        body, size = (None, 0) if content is None else ((lambda: [content]), len(content))
        asked = Request(method, self.url(path), headers or {}, body, size)
        return self.patiently(lambda: self.once(asked, expected), what)

    def patiently(self, work: Callable[[], T], what: str) -> T:
        """As ``failures.patiently``, for minutes at most, whatever the registry asks for."""
        return patiently(work, what, patience=self._patience)

    def once(self, request: Request, expected: tuple[int, ...]) -> Answer:
        """As ``ask``, tried once.

        Raises:
            Fault: it may help to try again.
            SourceError: it refuses.
        """
        answer = self._let_in(request)
        if answer.status in expected:
            return answer
        status, told = answer.status, answer.headers
        raise status_error(status, told, lambda: self._refuse(status, told, answer.body))

    def _let_in(self, request: Request) -> Answer:
        """Send it; where the registry asks who we are, say so and send it again."""
        answer = self._send(request)
        if answer.status == 401 and self._is_own(request.url):
            self._shown = self._introduced(answer.headers.get("www-authenticate", ""))
            if self._shown is not None:
                answer = self._send(request)
        return answer

    def _is_own(self, url: str) -> bool:
        return origin(url) == origin(self.base)

    def _send(self, request: Request) -> Answer:
        own = {"User-Agent": "phipipe", "Accept-Encoding": "identity", **request.headers}
        if request.method in ("POST", "PUT"):
            own["Content-Length"] = str(request.size)
        if self._shown and self._is_own(request.url):
            own["Authorization"] = " ".join(self._shown)
        http = exchange.http()
        body: Any = request.content() if request.content is not None else None
        try:
            with self.pool.stream(
                request.method, request.url, headers=own, content=body
            ) as response:
                status, told = int(response.status_code), response.headers
                self._answering.add(origin(request.url))
                return Answer(status, told, _beginning(response.iter_raw()))
        except http.TransportError as error:
            fault = fault_of(error)
            if origin(request.url) not in self._answering:
                fault.attempts = ASKS  # a mistyped address, rather than a pause
            raise fault from None

    def _introduced(self, challenge: str) -> tuple[str, str] | None:
        """What is to be shown, by what the registry asks for; None where we have nothing.

        Raises:
            SourceError: it asks where a password could be read on its way, or refuses it.
        """
        secret = credentials.of(self.address.host)
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            return ("Basic", secret) if secret else None
        given = dict(re.findall(r'([a-zA-Z]+)="([^"]*)"', rest))
        realm = given.get("realm", "")
        if scheme.lower() != "bearer" or not realm:
            return None
        if not is_private(realm) or not (self.address.is_local or realm.startswith("https://")):
            raise SourceError(
                f"`{self.address.host}` has passwords sent to where anybody can read them"
            )
        asked = {name: given[name] for name in ("service", "scope") if name in given}
        headers = {"Authorization": f"Basic {secret}"} if secret else {}
        target = f"{realm}{'&' if '?' in realm else '?'}{urlencode(asked)}"
        answer = self._token(target, headers)
        token = answer.get("token") or answer.get("access_token")
        return ("Bearer", token) if isinstance(token, str) and token.isprintable() else None

    def _token(self, url: str, headers: Mapping[str, str]) -> Mapping[str, object]:
        shown, self._shown = self._shown, None
        try:
            answer = self._send(Request("GET", url, headers))
        finally:
            self._shown = shown
        if answer.status != 200:
            raise status_error(
                answer.status, answer.headers, lambda: self._refuse(401, answer.headers)
            )
        try:
            told = json.loads(answer.body)
        except ValueError:
            told = None
        return told if isinstance(told, dict) else {}

    def redirected(self, answer: Answer) -> str:
        """Where an upload goes on, by what the registry says.

        Raises:
            SourceError: nowhere, or where anybody can read it.
        """
        url = urljoin(self.base, answer.headers.get("location", ""))
        if answer.headers.get("location") and is_private(url):
            return url
        raise SourceError(f"`{self.address.host}` does not say where an upload goes")

    def _refuse(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> SourceError:
        """What the registry's refusal means; ``headers`` as an ``Address`` hands them over."""
        host, name = self.address.host, self.address.repository
        if status == 401:
            hint = LOGIN.replace("HOST", host)
            return Expired(f"`{host}` does not know who asks for `{name}`", hint=hint)
        if status == 403:
            hint = LOGIN.replace("HOST", host)
            return SourceError(f"`{host}` does not let you do that with `{name}`", hint=hint)
        reason = _reason(body)
        if status == 404:
            return SourceError(f"`{host}` has no `{name}`, or not all of it{reason}")
        return SourceError(f"`{host}` answers {status} for `{name}`{reason}")


def _beginning(chunks: Iterable[bytes]) -> bytes:
    """What comes, as far as a manifest may be long."""
    kept = b""
    for chunk in chunks:
        kept += chunk
        if len(kept) > MAX_BYTES:
            break
    return kept[: MAX_BYTES + 1]


def _reason(body: bytes) -> str:
    """What a registry's error says, for the end of a sentence; nothing where it is none."""
    try:
        message = json.loads(body)["errors"][0]["message"]
    except (ValueError, KeyError, TypeError, IndexError):
        return ""
    return f": {json_files.shown(message)}" if isinstance(message, str) else ""
