"""A hub on this machine alone, with the three routes that clients use, and with faults to order.

Faults are asked for by file name (or "*"): each is taken from its list by one request for that
file's content, and counts down; an empty list means that everything works.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

CHUNK = 2**16


@dataclass
class Fault:
    """``kind``: cut, wrong-bytes, wrong-size, no-range, wrong-range, status, stall, html, redirect,
    gzip, longer."""

    kind: str
    at: int = 0  # bytes of the body before it strikes
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    to: str = ""  # of a redirect


@dataclass
class Seen:
    """One request for a file's content, or for what the hub knows (``name`` is then "")."""

    name: str
    path: str
    start: int
    token: str | None
    sent: int = 0


class Hub:
    """A running server; ``with`` ends it. ``files`` maps names to contents, ``large`` tells which
    are LFS."""

    def __init__(
        self,
        files: dict[str, bytes],
        commit: str = "c0ffee" + "0" * 34,
        repo: str = "someone/tiny",
        handler: type[_Handler] | None = None,
    ) -> None:
        self.files, self.commit, self.repo = files, commit, repo
        self.large = {name for name, data in files.items() if len(data) > 10_000}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.seen: list[Seen] = []
        self.branches = {"main": commit}
        self.others: dict[str, dict[str, bytes]] = {}  # repositories beside it: their files
        self.token: str | None = None  # whoever has another gets nothing
        self.gated = False
        self.answers: list[
            tuple[int, dict[str, str], bytes]
        ] = []  # instead of what the hub knows, one each
        self.pause_s = 0.0  # after each chunk
        self.buffer_bytes: int | None = (
            None  # of what the system may hold for a connection, and ``sent`` counts
        )
        self.dies_after: int | None = (
            None  # requests; then every connection is closed without a word
        )
        self.requests = 0
        self.released = threading.Event()
        hub = self

        kind = type("Handler", (handler or _Handler,), {"server_hub": hub})
        self._server = _Server(("127.0.0.1", 0), kind)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def sent(self, name: str) -> int:
        """Bytes of the file's content that went out, over all requests."""
        return sum(seen.sent for seen in self.seen if seen.name == name)

    def files_of(self, repo: str) -> dict[str, bytes]:
        """The files of ``repo``; nothing where there is no such repository."""
        return self.files if repo == self.repo else self.others.get(repo, {})

    def published(self, name: str, repo: str | None = None) -> dict[str, Any]:
        """Size and hashes as the hub's API gives them for ``name`` (of ``repo``)."""
        data = self.files_of(repo or self.repo)[name]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        sha256 = hashlib.sha256(data).hexdigest()
        lfs = {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 130}
        return {"size": len(data), "blob": blob, **({"lfs": lfs} if self._is_large(name) else {})}

    def _is_large(self, name: str) -> bool:
        return name in self.large or name.endswith((".safetensors", ".gguf"))


def of_folder(folder: Path, **more: Any) -> Hub:
    """A hub with one repository: the files of ``folder``."""
    return Hub(
        {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()},
        **more,
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is nothing to report."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        if self.server_hub.buffer_bytes is not None:
            self.request.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, self.server_hub.buffer_bytes
            )
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    @property
    def key(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"{}", X_Error_Code=code, X_Error_Message=code)

    def parse_request(self) -> bool:
        hub = self.server_hub
        hub.requests += 1
        if hub.dies_after is not None and hub.requests > hub.dies_after:
            self.close_connection = True
            return False
        return super().parse_request()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        form = parse_qs(self.rfile.read(length).decode())
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if (
            parts[:2] != ["api", "datasets"]
            or parts[4] != "paths-info"
            or self.known(parts[2:4], parts[5]) is None
        ):
            return
        hub = self.server_hub
        found = [(name, hub.published(name)) for name in form["paths"] if name in hub.files]
        rows = [
            {"type": "file", "path": name, "size": p["size"], "oid": p["blob"], "lfs": p.get("lfs")}
            for name, p in found
        ]
        self.answer(200, json.dumps(rows).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api" and len(parts) == 6 and parts[4] == "revision":
            self.info(parts)
            return
        if parts[0] == "datasets":
            parts = parts[1:]
        if len(parts) < 5 or parts[2] != "resolve":
            self.refuse(404, "EntryNotFound")
            return
        self.content(parts[:2], parts[3], "/".join(parts[4:]))

    def known(self, repo: list[str], revision: str, name: str = "") -> str | None:
        """The commit, or None where a refusal went out."""
        hub = self.server_hub
        hub.seen.append(Seen(name, self.path, 0, self.key))
        if not hub.files_of("/".join(repo)):
            self.refuse(401 if self.key is None else 404, "RepoNotFound")
        elif self.key is not None and hub.token is not None and self.key != hub.token:
            self.answer(401, b"{}", X_Error_Message="Invalid credentials in Authorization header")
        elif revision != hub.commit and revision not in hub.branches:
            self.refuse(404, "RevisionNotFound")
        else:
            return hub.branches.get(revision, revision)
        return None

    def info(self, parts: list[str]) -> None:
        hub, commit = self.server_hub, self.known(parts[2:4], parts[5])
        if commit is None:
            return
        if hub.answers:
            status, headers, body = hub.answers.pop(0)
            self.answer(status, body, **headers)
            return
        siblings, repo = [], "/".join(parts[2:4])
        for name in hub.files_of(repo):
            published = hub.published(name, repo)
            row = {"rfilename": name, "size": published["size"], "blobId": published["blob"]}
            siblings.append(row | ({"lfs": published["lfs"]} if "lfs" in published else {}))
        told = {"id": repo, "sha": commit, "siblings": siblings, "cardData": {"license": "mit"}}
        self.answer(200, json.dumps(told).encode(), Content_Type="application/json")

    def content(self, repo: list[str], revision: str, name: str) -> None:
        hub = self.server_hub
        if self.known(repo, revision, name) is None:
            return
        seen = hub.seen[-1]
        if hub.gated and self.key != hub.token:
            self.refuse(401 if self.key is None else 403, "GatedRepo")
        elif name not in hub.files_of("/".join(repo)):
            self.refuse(404, "EntryNotFound")
        else:
            waiting = hub.faults[name] or hub.faults["*"]
            data = hub.files_of("/".join(repo))[name]
            self.send_file(seen, data, waiting.pop(0) if waiting else Fault(""))

    def send_file(self, seen: Seen, data: bytes, fault: Fault) -> None:
        wanted = self.headers.get("Range", "")
        if fault.kind == "status":
            self.answer(fault.status, b"later", **fault.headers)
            return
        if fault.kind == "redirect":
            self.answer(302, Location=fault.to + (self.path if fault.to.count("/") == 2 else ""))
            return
        if fault.kind == "html":
            self.answer(200, b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")
            return
        start, _, end = wanted.removeprefix("bytes=").partition("-") if wanted else ("0", "", "")
        first, last = int(start), min(int(end or len(data) - 1), len(data) - 1)
        if not wanted or fault.kind == "no-range":
            status, first, last = 200, 0, len(data) - 1
        else:
            status = 206
        body = data[first : last + 1]
        if fault.kind == "wrong-bytes":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault.kind in ("wrong-size", "longer"):
            body += b"more"
        seen.start = first
        self.send_response(status)
        if status == 206:
            shift = 1 if fault.kind == "wrong-range" else 0
            self.send_header("Content-Range", f"bytes {first + shift}-{last}/{len(data)}")
        if fault.kind == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if fault.kind == "longer":
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.send_body(seen, body, fault)

    def send_body(self, seen: Seen, body: bytes, fault: Fault) -> None:
        limit = fault.at if fault.kind in ("cut", "stall") else len(body)
        chunk = self.server_hub.buffer_bytes or CHUNK
        for i in range(0, min(limit, len(body)), chunk):
            piece = memoryview(body)[i : min(i + chunk, limit)]
            seen.sent += len(piece)  # before the client can have it, and look
            try:
                while piece:
                    piece = piece[self.connection.send(piece) :]
            except OSError:  # the client has gone
                seen.sent -= len(piece)
                self.close_connection = True
                return
            if self.server_hub.pause_s:
                time.sleep(self.server_hub.pause_s)
        if fault.kind == "stall":
            self.server_hub.released.wait(30)
        if limit < len(body):
            self.close_connection = True
