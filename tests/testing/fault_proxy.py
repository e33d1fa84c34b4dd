"""A server that stands before another one on this machine, and breaks what it is told to break.

Faults are taken in their order: the first that fits a request and is not used up strikes.
"""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

ALWAYS = 10**9


@dataclass
class Strike:
    """``kind``: cut-request (after ``at`` bytes of its body), status, lost (done there, and no
    answer), cut-answer (after ``at`` bytes), other-bytes, longer, header, call."""

    kind: str
    method: str  # a regular expression, as ``path``
    path: str
    times: int = 1
    at: int = 1000
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    call: Callable[[], None] = lambda: None
    struck: int = 0

    def fits(self, method: str, path: str) -> bool:
        return bool(re.fullmatch(self.method, method) and re.search(self.path, path))


class FaultProxy:
    """Before the server at ``upstream`` (http://HOST:PORT); ``with`` ends it."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.strikes: list[Strike] = []
        self.seen: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def strike(self, method: str, path: str) -> Strike | None:
        with self._lock:
            self.seen.append((method, path))
            for one in self.strikes:
                if one.struck < one.times and one.fits(method, path):
                    one.struck += 1
                    return one
        return None

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or cut, is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_any(self) -> None:
        strike = self.proxy.strike(self.command, self.path)
        kind = strike.kind if strike else ""
        if strike and kind == "cut-request":
            self.rfile.read(min(strike.at, int(self.headers.get("Content-Length", 0))))
            self.close_connection = True
            return
        body = self.body()
        if strike and kind == "call":
            strike.call()
        if strike and kind == "status":
            self.tell(strike.status, list(strike.headers.items()), b"{}")
            return
        status, headers, answer = self.forward(body)
        if kind == "lost":
            self.close_connection = True
            return
        if strike and kind == "other-bytes" and answer:
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        if strike and kind == "header":
            names = {name.lower() for name in strike.headers}
            headers = [h for h in headers if h[0].lower() not in names]
            headers += strike.headers.items()
        self.tell(status, headers, answer, strike)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_any

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        there = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        try:
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            dropped = ("transfer-encoding", "content-length", "connection", "expect")
            for name, value in self.headers.items():
                if name.lower() not in dropped:
                    there.putheader(name, value)
            there.putheader("Content-Length", str(len(body)))
            there.endheaders(body or None)
            answer = there.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            there.close()

    def tell(
        self,
        status: int,
        headers: list[tuple[str, str]],
        body: bytes,
        strike: Strike | None = None,
    ) -> None:
        self.send_response(status)
        length = next((v for n, v in headers if n.lower() == "content-length"), str(len(body)))
        own = ("content-length", "connection", "transfer-encoding", "date", "server")
        for name, value in headers:
            if name.lower() not in own:
                self.send_header(name, value)
        if self.command != "HEAD":
            length = str(len(body) + (10 if strike and strike.kind == "longer" else 0))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if strike and strike.kind in ("cut-answer", "longer"):
            self.close_connection = True
            body = body[: strike.at] if strike.kind == "cut-answer" else body
        self.wfile.write(body)
