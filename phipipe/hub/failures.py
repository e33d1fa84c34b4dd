"""What goes wrong on the way to a file: what may pass and is tried again, and what is final."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import random
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import responses
from typing import TypeVar

from phipipe.errors import Interrupted, SourceError

T = TypeVar("T")
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


class Unreachable(SourceError):
    """The other side could not be asked, so that nothing is known: later it may answer."""


class NotThere(SourceError):
    """The other side was asked, and has no such repository; or shows it to others alone."""


class NoRevision(SourceError):
    """The other side has the repository, and no such branch, tag or commit of it."""


class OtherBytes(SourceError):
    """What came is not what its publisher says it is."""


class Fault(Exception):
    """Something that may pass: try again, after ``wait_s`` if the server said so, at most
    ``attempts`` times."""

    def __init__(self, message: str, wait_s: float | None = None, attempts: int = 1000) -> None:
        super().__init__(message)
        self.wait_s, self.attempts = wait_s, attempts


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
            longest_s = min(PACE.longest_s, PACE.first_s * 2 ** (failures - 1))
            pause = longest_s * random.uniform(0.5, 1.0)
            asked = 0.0 if fault.wait_s is None else min(fault.wait_s, PACE.asked_s)
            if (stopped or threading.Event()).wait(max(pause, asked)):
                raise Interrupted("stopped") from None


def fault_of(error: Exception) -> Fault:
    """What a failed exchange means; the URL stays out of it, since it may be signed.

    Raises:
        SourceError: trying again cannot help.
    """
    cause: BaseException | None = error
    seen: set[int] = set()  # what is raised while its own wrapper is handled leads back to it
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
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
        return Fault(f"no connection{_host(error)}: is there a network?")
    return Fault(f"the connection broke ({type(error).__name__})")


def _host(error: Exception) -> str:
    with contextlib.suppress(RuntimeError):  # it belongs to no request
        request = getattr(error, "request", None)
        return f" to {request.url.host}" if request else ""
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
