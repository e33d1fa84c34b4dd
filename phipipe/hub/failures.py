"""What goes wrong on the way to a file: what may pass and is tried again, and what is final."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import responses
from typing import TypeVar

from phipipe.errors import Interrupted, SourceError
from phipipe.words import place, unanswered

T = TypeVar("T")
GO_ON = "run the same command again: it goes on where this one stopped"
CHECK = "check the address and the network, and the proxy if one is set"
TOLD_S = 1.0  # a wait that is long enough to be told


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


@dataclass(frozen=True)
class Patience:
    """How long a single server may keep us, whatever it asks for; ``note`` hears of waits and why
    they are."""

    note: Callable[[str], None]
    whole_s: float = 120.0  # from the first failure on, without a new byte


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
    ``attempts`` times. ``hint``: what to try where it did not pass."""

    def __init__(
        self,
        message: str,
        wait_s: float | None = None,
        attempts: int = 1000,
        hint: str = GO_ON,
    ) -> None:
        super().__init__(message)
        self.wait_s, self.attempts, self.hint = wait_s, attempts, hint


def patiently(
    work: Callable[[], T],
    what: str,
    position: Callable[[], int] = lambda: 0,
    stopped: threading.Event | None = None,
    patience: Patience | None = None,
) -> T:
    """Call ``work`` until it raises no ``Fault``; failures count as long as ``position`` does not
    grow.

    With ``patience`` a single wait is no longer than those that we choose ourselves
    (``Pace.longest_s``), and all together end in ``Patience.whole_s``.

    Raises:
        Unreachable: it failed too often, or for too long; says ``what``.
        Interrupted: ``stopped`` was set while it waited.
    """
    failures, best, began = 0, position(), 0.0
    while True:
        try:
            return work()
        except Fault as fault:
            failures = 1 if position() > best else failures + 1
            best = max(best, position())
            began = time.monotonic() if failures == 1 else began
            wait_s = _pause(failures, fault, patience)
            is_late = patience and time.monotonic() - began + wait_s > patience.whole_s
            if is_late or failures >= min(PACE.attempts, fault.attempts):
                raise Unreachable(f"{what}: {fault}", hint=fault.hint) from None
            if patience and wait_s >= TOLD_S:
                patience.note(f"{what}: {fault}; trying again in {wait_s:.0f} s")
            if (stopped or threading.Event()).wait(wait_s):
                raise Interrupted("stopped") from None


def _pause(failures: int, fault: Fault, patience: Patience | None) -> float:
    """Seconds to wait after so many failures in a row, the last of which is ``fault``."""
    longest_s: float = min(PACE.longest_s, PACE.first_s * 2 ** (failures - 1))
    most_s = PACE.longest_s if patience else PACE.asked_s
    return max(longest_s * random.uniform(0.5, 1.0), min(fault.wait_s or 0.0, most_s))


def fault_of(error: Exception) -> Fault:
    """What a failed exchange means; the URL stays out of it, since it may be signed.

    Raises:
        SourceError: trying again cannot help.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise SourceError(
                f"the server's certificate is not trusted: {cause.verify_message}",
                hint="if a proxy of your own re-signs traffic, set SSL_CERT_FILE to its "
                "certificates",
            ) from None
    if type(error).__name__ in ("ConnectError", "ConnectTimeout"):
        causes = [*_causes(error)]
        if any(isinstance(cause, ssl.SSLError) for cause in causes):
            return Fault(f"{place(_url(error))} does not answer as TLS has it", hint=CHECK)
        is_known = not any(isinstance(cause, socket.gaierror) for cause in causes)
        return Fault(unanswered(_url(error), is_known=is_known), hint=CHECK)
    if "Timeout" in type(error).__name__:
        return Fault(f"no answer for {PACE.stall_s:g} s")
    return Fault(f"the connection broke ({type(error).__name__})")


def _causes(error: Exception) -> Iterator[BaseException]:
    """``error``, and what led to it."""
    cause: BaseException | None = error
    seen: set[int] = set()  # what is raised while its own wrapper is handled leads back to it
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _url(error: Exception) -> str:
    with contextlib.suppress(RuntimeError):  # it belongs to no request
        request = getattr(error, "request", None)
        return str(request.url) if request else ""
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
