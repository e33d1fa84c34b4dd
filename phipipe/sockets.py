"""What of a connection waits in the system's own buffer, where a kill loses it."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from typing import Any

NEAR_S = 0.002  # so near that 192 KiB under way carry 98 MB/s per connection: more than most links


def bound_unread(response: Any, most_bytes: int, waited_s: float) -> None:
    """Let about ``most_bytes`` of the HTTP ``response`` wait unread, where its link is near; not a byte is lost.

    On a fast and near link they would become megabytes. A far one needs those under way for its throughput, and few of
    them wait: we read faster than they come. ``waited_s``, from the request to the answer, takes the round trip's place
    where the system does not tell that.
    """
    stream = response.extensions.get("network_stream")
    link = stream.get_extra_info("socket") if stream is not None else None
    if link is None:
        return
    with contextlib.suppress(OSError):  # it is closed already, or is no TCP
        if (_round_trip_s(link) or waited_s) <= NEAR_S:
            # Linux doubles what it is told, for its own needs, of which it has few where segments are large.
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, most_bytes // 2)


def _round_trip_s(link: socket.socket) -> float | None:
    """The system's own estimate for a connection, None where it gives none."""
    if sys.platform != "linux":
        return None
    told = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 72)
    return float(struct.unpack_from("=I", told, 68)[0]) / 1e6  # linux/tcp.h: tcpi_rtt, in microseconds
