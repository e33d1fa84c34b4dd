"""What of a connection waits in the system's own buffer, where a kill loses it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phipipe.hub.exchange import Response

NEAR_S = 0.002  # a round trip so short that 128 KiB under way carry 66 MB/s on each connection


def bound_unread(response: Response, most_bytes: int) -> None:
    """Let no more than ``most_bytes`` of the HTTP ``response`` wait unread, where the link is near.

    On a fast and near link they would become megabytes. A far one needs those under way for its
    throughput, and there few of them wait: we read faster than they come.
    """
    stream = response.extensions.get("network_stream")
    link = stream.get_extra_info("socket") if stream is not None else None
    with contextlib.suppress(OSError):  # closed already
        if link is not None and _is_near(link):
            # Linux doubles what it is told, for its own needs, of which large segments leave none.
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, most_bytes // 2)


def _is_near(link: socket.socket) -> bool:
    """Whether a round trip takes ``NEAR_S`` at most. Only Linux tells; elsewhere this very machine
    alone is near."""
    if sys.platform == "linux":
        state = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 72)
        round_trip_us: int = struct.unpack_from("=I", state, 68)[0]  # linux/tcp.h: tcpi_rtt
        return round_trip_us / 1e6 <= NEAR_S
    return ipaddress.ip_address(link.getpeername()[0].partition("%")[0]).is_loopback
