"""Files over HTTP that arrive whole or not at all: resumed by Range, hashed while they stream,
tried again with pauses.

What was received lies in a partial file, written as it comes: whoever is killed loses what was on
its way, 1 MiB at most, or where that is more, what the link carries in one round trip. The hash
that the publisher names is the only judge of a file; ranges, sizes and types only find faults
earlier.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import hashlib
import importlib
import os
import queue
import random
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import responses
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from phipipe.errors import Interrupted, SourceError
from phipipe.hub import sockets

T = TypeVar("T")
CHUNK = 2**20  # of what is read from a disk
REDIRECTS = 5
CONNECTIONS = 4
TWICE_BYTES = 2**20  # at most so many come again after a kill, over all connections
READ_BYTES = 2**16  # that the HTTP library takes from a connection at once
LOOPBACK = ("localhost", "127.0.0.1", "::1")
GO_ON = "run the same command again: it goes on where this one stopped"


@dataclass(frozen=True)
class Pace:
    """How patient a transfer is. ``attempts`` counts failures in a row without one new byte; times
    in seconds."""

    attempts: int = 8
    # doubled after each failure, and shortened at random: many clients must not come back at once
    first_s: float = 0.5
    longest_s: float = 30.0
    stall_s: float = 30.0  # without a byte
    asked_s: float = 300.0  # the longest that a server may make us wait (Retry-After)


PACE = Pace()


@dataclass(frozen=True, order=True)
class Published:
    """A file as its publisher describes it; ``algorithm`` is "sha256" or "git-sha1", ``size`` in
    bytes."""

    name: str
    size: int
    algorithm: str
    digest: str

    def hash(self) -> Any:
        """A fresh hash object for this file's content."""
        if self.algorithm == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)  # git names a blob so

    def matches(self, path: Path) -> bool:
        """Whether the file at ``path`` is this one, to the bit; False where there is none."""
        try:
            if path.stat().st_size != self.size:
                return False
            found = self.hash()
            with path.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    found.update(chunk)
        except FileNotFoundError:
            return False
        return bool(found.hexdigest() == self.digest)


@dataclass(frozen=True)
class Remote:
    """Where a file is had. ``token`` goes to this URL's own host alone; ``refuse`` words a final
    answer."""

    url: str
    refuse: Callable[[int, Mapping[str, str]], SourceError]
    token: str | None = None

    def __repr__(self) -> str:
        return f"Remote({self.url!r})"  # never the token


class Unreachable(SourceError):
    """The other side could not be asked, so that nothing is known: later it may answer."""


class Fault(Exception):
    """Something that may pass: try again, after ``wait_s`` if the server said so, at most
    ``attempts`` times."""

    def __init__(self, message: str, wait_s: float | None = None, attempts: int = 1000) -> None:
        super().__init__(message)
        self.wait_s, self.attempts = wait_s, attempts


def library() -> Any:
    """``huggingface_hub``, imported late. It sends no telemetry, and asks nothing of its own."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for part in ("constants", "errors"):
        importlib.import_module(f"huggingface_hub.{part}")
    return importlib.import_module("huggingface_hub")


def http() -> Any:
    """The HTTP library that huggingface_hub brings: httpx, or its successor of the same
    interface."""
    return importlib.import_module(type(library().get_session()).__module__.partition(".")[0])


def client(connections: int = 1) -> Any:
    """A pool for so many connections. Redirects are followed here, not there: they decide who gets
    a token."""
    limits = http().Timeout(PACE.stall_s, connect=min(PACE.stall_s, 15.0), pool=None)
    unread = TWICE_BYTES // connections - 2 * READ_BYTES
    hooks = {"response": [lambda response: sockets.bound_unread(response, unread)]}
    return http().Client(follow_redirects=False, timeout=limits, event_hooks=hooks)


def is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent to ``url``: TLS, or this very machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in LOOPBACK


def patiently(
    work: Callable[[], T],
    what: str,
    position: Callable[[], int] = lambda: 0,
    stopped: threading.Event | None = None,
) -> T:
    """Call ``work`` until it raises no ``Fault``; failures count as long as ``position`` does not
    grow.

    Raises:
        Unreachable: it failed too often; says ``what``.
        Interrupted: ``stopped`` was set while it waited.
    """
    failures, best = 0, position()
    while True:
        try:
            return work()
        except Fault as fault:
            failures = 1 if position() > best else failures + 1
            best = max(best, position())
            if failures >= min(PACE.attempts, fault.attempts):
                raise Unreachable(f"{what}: {fault}", hint=GO_ON) from None
            pause = min(PACE.longest_s, PACE.first_s * 2 ** (failures - 1)) * random.uniform(
                0.5, 1.0
            )
            asked = 0.0 if fault.wait_s is None else min(fault.wait_s, PACE.asked_s)
            if (stopped or threading.Event()).wait(max(pause, asked)):
                raise Interrupted("stopped") from None


def fault_of(error: Exception) -> Fault:
    """What a failed exchange means; the URL stays out of it, since it may be signed.

    Raises:
        SourceError: trying again cannot help.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise SourceError(
                f"the server's certificate is not trusted: {cause.verify_message}",
                hint="if a proxy of your own re-signs traffic, set SSL_CERT_FILE to its "
                "certificates",
            ) from None
        cause = cause.__cause__ or cause.__context__
    if "Timeout" in type(error).__name__:
        return Fault(f"no answer for {PACE.stall_s:g} s")
    if type(error).__name__ == "ConnectError":
        return Fault(f"no connection{_to(error)}: is there a network?")
    return Fault(f"the connection broke ({type(error).__name__})")


def _to(error: Any) -> str:
    with contextlib.suppress(RuntimeError):  # it belongs to no request
        return f" to {error.request.url.host}"
    return ""


def status_error(
    status: int, headers: Mapping[str, str], refuse: Callable[[], SourceError]
) -> Exception:
    """What an answer other than success means: a ``Fault`` where it may pass, else ``refuse``'s
    error."""
    if status in (408, 416, 425, 429) or status >= 500:
        wait_s = _retry_after(headers.get("retry-after"))
        words = f" ({phrase})" if (phrase := responses.get(status)) else ""
        asks = f" and asks to wait for {wait_s:.0f} s" if wait_s else ""
        return Fault(f"the server answered {status}{words}{asks}", wait_s)
    return refuse()


def _retry_after(text: str | None) -> float | None:
    """Seconds in a Retry-After header, which holds seconds or a date."""
    if text is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", text):
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        then = email.utils.parsedate_to_datetime(text)
        return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())
    return None


class _Part:
    """The partial file: what is in it, hashed so far."""

    def __init__(self, path: Path, file: Published) -> None:
        self.path, self.file = path, file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._read()

    def _read(self) -> None:
        self.hash, self.position = self.file.hash(), 0
        if os.fstat(self._stream.fileno()).st_size > self.file.size:
            self._stream.truncate(0)
        self._stream.seek(0)
        while chunk := self._stream.read(CHUNK):
            self.hash.update(chunk)
            self.position += len(chunk)

    def write(self, data: bytes) -> None:
        """Append; nothing stays in this process's memory."""
        view = memoryview(data)
        while view:
            count = self._stream.write(view)
            self.hash.update(view[:count])
            self.position += count
            view = view[count:]

    def empty(self) -> None:
        self._stream.truncate(0)
        self._read()

    def close(self) -> None:
        self._stream.close()


def fetch(
    pool: Any,
    remote: Remote,
    file: Published,
    path: Path,
    on_bytes: Callable[[int], None] = lambda count: None,
    stopped: threading.Event | None = None,
) -> None:
    """Complete the partial file ``path``, whose content then is ``file``'s to the bit. ``pool`` is
    a ``client()``.

    ``on_bytes`` is told how many bytes came, and what was found in the partial; a negative number
    takes back.

    Raises:
        SourceError: the server refuses, fails too often, or twice sends what does not hash to what
            was published.
        Interrupted: ``stopped`` was set.
        OSError: the partial file cannot be written; what it has stays.
    """
    part = _Part(path, file)
    on_bytes(part.position)
    try:
        for _ in range(2):
            patiently(
                lambda: _attempt(pool, remote, part, on_bytes, stopped),
                f"cannot download `{file.name}`",
                lambda: part.position,
                stopped,
            )
            if part.hash.hexdigest() == file.digest:
                return
            on_bytes(-part.position)
            part.empty()
    finally:
        part.close()
    path.unlink()
    raise SourceError(
        f"`{file.name}` is not what was published: it came twice with another {file.algorithm}",
        hint="a proxy or mirror on the way may change files; try without it (HF_ENDPOINT, "
        "HTTPS_PROXY)",
    )


def _attempt(
    pool: Any,
    remote: Remote,
    part: _Part,
    on_bytes: Callable[[int], None],
    stopped: threading.Event | None,
) -> None:
    """One request for what is still missing.

    Raises:
        Fault: it ended early, or with what cannot be right.
    """
    file = part.file
    if part.position == file.size:
        return
    with _opened(pool, remote, f"bytes={part.position}-" if part.position else None) as response:
        if response.status_code == 416:  # it disagrees about the size: do not ask the same again
            on_bytes(-part.position)
            part.empty()
        skip = _begin(response, remote, file, part.position)
        for chunk in response.iter_raw():
            if stopped is not None and stopped.is_set():
                raise Interrupted("stopped")
            chunk, skip = chunk[skip:], max(0, skip - len(chunk))
            if part.position + len(chunk) > file.size:
                raise Fault(f"more than the published {file.size} bytes come", attempts=2)
            part.write(chunk)
            on_bytes(len(chunk))
    if part.position < file.size:
        raise Fault(f"the connection ended after {part.position} of {file.size} bytes")


def head(pool: Any, remote: Remote, file: Published, count: int) -> bytes:
    """The first ``count`` bytes of ``file`` (all of it where it is shorter). Nothing vouches for
    them.

    Raises:
        SourceError: as ``fetch``.
    """
    count = min(count, file.size)

    def once() -> bytes:
        got = bytearray()
        with _opened(pool, remote, f"bytes=0-{count - 1}") as response:
            _begin(response, remote, file, 0, count)
            for chunk in response.iter_raw():
                got += chunk
                if len(got) >= count:  # a server that ignores ranges would go on
                    return bytes(got[:count])
        raise Fault(f"the connection ended after {len(got)} of {count} bytes")

    return patiently(once, f"cannot read the head of `{file.name}`") if count else b""


@contextlib.contextmanager
def _opened(pool: Any, remote: Remote, wanted: str | None) -> Iterator[Any]:
    """The answer to a GET, redirects followed; the token goes nowhere but to the first host.

    Raises:
        Fault: the exchange broke, here or while the caller reads.
        SourceError: a redirect leads to where no file can be had safely.
    """
    url, headers = remote.url, {"Accept-Encoding": "identity", "User-Agent": "phipipe"}
    if wanted:
        headers["Range"] = wanted
    try:
        for _ in range(REDIRECTS + 1):
            own = (
                remote.token is not None and _origin(url) == _origin(remote.url) and is_private(url)
            )
            asked = {**headers, "Authorization": f"Bearer {remote.token}"} if own else headers
            response = pool.send(pool.build_request("GET", url, headers=asked), stream=True)
            with contextlib.closing(response):
                if response.status_code not in (301, 302, 303, 307, 308):
                    yield response
                    return
            url = _redirected(url, response.headers.get("location", ""))
            if is_private(remote.url) and not is_private(url):
                raise SourceError(
                    "the server redirects to where anybody can read and change what is sent"
                )
    except http().TransportError as error:
        raise fault_of(error) from None
    raise Fault(f"more than {REDIRECTS} redirects", attempts=2)


def _redirected(url: str, location: str) -> str:
    """Where ``location`` leads.

    Raises:
        SourceError: nowhere.
    """
    try:
        found = urljoin(url, location)
        http().URL(found)
        if urlsplit(found).scheme in ("http", "https") and urlsplit(found).port != 0:
            return found
    except (ValueError, http().InvalidURL):
        pass  # said below
    raise SourceError("the server redirects to what is no address on the web")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _begin(
    response: Any, remote: Remote, file: Published, offset: int, count: int | None = None
) -> int:
    """Check what is to come against what was asked for; how many bytes to skip where the range was
    ignored.

    Raises:
        Fault, SourceError: this is not the file.
    """
    status, headers = int(response.status_code), response.headers
    if status not in (200, 206):
        raise status_error(status, headers, lambda: remote.refuse(status, headers))
    if headers.get("content-type", "").startswith("text/html") and not file.name.endswith(
        (".html", ".htm")
    ):
        raise SourceError(
            f"instead of `{file.name}` came a web page: some proxy or login page answers for "
            f"the server",
            hint=f"log in to your network, or set HTTPS_PROXY; then {GO_ON}",
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Fault("the content comes compressed, against the request", attempts=3)
    start, end, total = 0, file.size, str(file.size)
    if status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("content-range", ""))
        if found is None:
            raise Fault("a part comes that does not say which", attempts=3)
        start, end, total = int(found[1]), int(found[2]) + 1, found[3]
    if start not in (0, offset) or total not in (str(file.size), "*"):
        raise Fault(
            f"bytes {start}-{end - 1} of {total} come, asked for those from {offset} of "
            f"{file.size}",
            attempts=3,
        )
    length = headers.get("content-length")
    wanted = file.size - start if status == 200 or count is None else count
    if length is not None and length != str(wanted):
        raise Fault(f"{length} bytes come where {wanted} were published", attempts=3)
    return offset - start


def fetch_all(
    jobs: Sequence[tuple[Remote, Published, Path]], on_progress: Callable[[int], None]
) -> None:
    """``fetch`` several files at once. ``on_progress`` hears from this thread, and often, how many
    bytes are there.

    An exception that it raises ends everything; partial files stay.

    Raises:
        SourceError, Interrupted, OSError: what the first failure was.
    """
    waiting: queue.SimpleQueue[tuple[Remote, Published, Path]] = queue.SimpleQueue()
    endings: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stopped, lock, there = threading.Event(), threading.Lock(), [0]
    for job in sorted(jobs, key=lambda job: -job[1].size):
        waiting.put(job)

    def count(more: int) -> None:
        with lock:
            there[0] += more

    def work(pool: Any) -> None:
        while not stopped.is_set():
            try:
                remote, file, path = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                fetch(pool, remote, file, path, count, stopped)
            except BaseException as error:  # noqa: BLE001 (raised again by whoever waits for it)
                endings.put(error)
                return
            endings.put(None)

    connections = max(1, min(len(jobs), CONNECTIONS))
    with client(connections) as pool:
        threads = [
            threading.Thread(target=work, args=(pool,), daemon=True) for _ in range(connections)
        ]
        try:
            for thread in threads:
                thread.start()
            _await(len(jobs), endings, lambda: on_progress(there[0]))
        finally:
            stopped.set()
            for thread in threads:
                thread.join(1.0)  # one that waits for a silent server ends by its own timeout


def _await(
    count: int, endings: queue.SimpleQueue[BaseException | None], told: Callable[[], None]
) -> None:
    while count:
        with contextlib.suppress(queue.Empty):
            ending = endings.get(timeout=0.2)
            if ending is not None:
                raise ending
            count -= 1
        told()
