"""Files over HTTP that arrive whole or not at all: resumed by Range, hashed while they stream,
tried again with pauses.

What was received lies in a partial file, written as it comes: whoever is killed loses what was on
its way, 1 MiB at most, or where that is more, what the link carries in one round trip. The hash
that the publisher names is the only judge of a file; ranges, sizes and types only find faults
earlier.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from phipipe.errors import Interrupted, SourceError
from phipipe.hub import exchange
from phipipe.hub.exchange import Address, Client, Response
from phipipe.hub.failures import GO_ON, Fault, OtherBytes, patiently, status_error
from phipipe.hub.published import Part, Published

CONNECTIONS = 4
NO_PROXY = (
    "a proxy or mirror on the way may change files; try without it (HF_ENDPOINT, HTTPS_PROXY)"
)


def fetch(
    pool: Client,
    address: Address,
    file: Published,
    path: Path,
    on_bytes: Callable[[int], None] = lambda count: None,
    stopped: threading.Event | None = None,
) -> None:
    """Complete the partial file ``path``, whose content then is ``file``'s to the bit; ``pool`` is
    an ``exchange.client()``.

    ``on_bytes`` is told how many bytes came, and what was found in the partial; a negative number
    takes back.

    Raises:
        SourceError: the server refuses, fails too often, or twice sends what does not hash to what
            was published.
        Interrupted: ``stopped`` was set.
        OSError: the partial file cannot be written; what it has stays.
    """
    part = Part(path, file)
    on_bytes(part.position)
    try:
        for _ in range(2):
            patiently(
                lambda: _attempt(pool, address, part, on_bytes, stopped),
                f"cannot download `{file.name}`",
                lambda: part.position,
                stopped,
                address.patience,
            )
            if part.hash.hexdigest() == file.digest:
                return
            on_bytes(-part.position)
            part.empty()
    finally:
        part.close()
    path.unlink()
    message = f"`{file.name}` is not what was published: it came twice with another"
    raise OtherBytes(f"{message} {file.algorithm}", hint=NO_PROXY)


def _attempt(
    pool: Client,
    address: Address,
    part: Part,
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
    wanted = f"bytes={part.position}-" if part.position else None
    with exchange.opened(pool, address, wanted) as response:
        if response.status_code == 416:  # it disagrees about the size: do not ask the same again
            on_bytes(-part.position)
            part.empty()
        skip = _begin(response, address, file, part.position)
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


def span(pool: Client, address: Address, file: Published, count: int, start: int = 0) -> bytes:
    """``count`` bytes of ``file`` from ``start`` (those up to its end, where it is shorter).
    Nothing vouches for them.

    Raises:
        SourceError: as ``fetch``.
    """
    count = min(count, file.size - start)

    def once() -> bytes:
        got = bytearray()
        with exchange.opened(pool, address, f"bytes={start}-{start + count - 1}") as response:
            skip = _begin(response, address, file, start, count)
            for chunk in response.iter_raw():
                got += chunk[skip:]
                skip = max(0, skip - len(chunk))
                if len(got) >= count:  # a server that ignores ranges would go on
                    return bytes(got[:count])
        raise Fault(f"the connection ended after {len(got)} of {count} bytes")

    return patiently(once, f"cannot read the head of `{file.name}`") if count > 0 else b""


def _begin(
    response: Response, address: Address, file: Published, offset: int, count: int | None = None
) -> int:
    """Check what is to come against what was asked for; how many bytes to skip where the range was
    ignored.

    Raises:
        Fault, SourceError: this is not the file.
    """
    status, headers = int(response.status_code), response.headers
    if status not in (200, 206):
        raise status_error(status, headers, lambda: address.refuse(status, headers))
    _check_content(headers, file)
    start, end, total = 0, file.size, str(file.size)
    if status == 206:
        start, end, total = _range_in(headers)
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


def _check_content(headers: Mapping[str, str], file: Published) -> None:
    """Refuse what is not the file as it is."""
    is_page = headers.get("content-type", "").startswith("text/html")
    if is_page and not file.name.endswith((".html", ".htm")):
        raise SourceError(
            f"instead of `{file.name}` came a web page: some proxy or login page answers for "
            f"the server",
            hint=f"log in to your network, or set HTTPS_PROXY; then {GO_ON}",
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Fault("the content comes compressed, against the request", attempts=3)


def _range_in(headers: Mapping[str, str]) -> tuple[int, int, str]:
    """Which bytes come: the first, the one after the last, and of how many ("*": not said)."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("content-range", ""))
    if match is None:
        raise Fault("a part comes that does not say which", attempts=3)
    return int(match[1]), int(match[2]) + 1, match[3]


def fetch_all(
    jobs: Sequence[tuple[Address, Published, Path]], on_progress: Callable[[int], None]
) -> None:
    """``fetch`` several files at once. ``on_progress`` hears from this thread, and often, how many
    bytes are there.

    An exception that it raises ends everything; partial files stay.

    Raises:
        SourceError, Interrupted, OSError: what the first failure was.
    """
    transfers = _Transfers(jobs)
    connections = max(1, min(len(jobs), CONNECTIONS))
    with exchange.client(connections) as pool:
        threads = [
            threading.Thread(target=transfers.work, args=(pool,), daemon=True)
            for _ in range(connections)
        ]
        try:
            for thread in threads:
                thread.start()
            transfers.wait(on_progress)
        finally:
            transfers.stopped.set()
            for thread in threads:
                thread.join(1.0)  # one that waits for a silent server ends by its own timeout


class _Transfers:
    """Files that several threads fetch, the largest first."""

    def __init__(self, jobs: Sequence[tuple[Address, Published, Path]]) -> None:
        self.stopped = threading.Event()
        self._left, self._bytes, self._counting = len(jobs), 0, threading.Lock()
        self._waiting: queue.SimpleQueue[tuple[Address, Published, Path]] = queue.SimpleQueue()
        self._endings: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for job in sorted(jobs, key=lambda job: -job[1].size):
            self._waiting.put(job)

    def work(self, pool: Client) -> None:
        """Fetch one file after another, until there are no more or one fails."""
        while not self.stopped.is_set():
            try:
                address, file, path = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                fetch(pool, address, file, path, self._count, self.stopped)
            except BaseException as error:  # noqa: BLE001 (raised again by whoever waits for it)
                self._endings.put(error)
                return
            self._endings.put(None)

    def _count(self, more: int) -> None:
        with self._counting:
            self._bytes += more

    def wait(self, on_progress: Callable[[int], None]) -> None:
        """Until all files are there; raises the first failure."""
        while self._left:
            with contextlib.suppress(queue.Empty):
                ending = self._endings.get(timeout=0.2)
                if ending is not None:
                    raise ending
                self._left -= 1
            on_progress(self._bytes)
