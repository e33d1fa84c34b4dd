"""Sizes, counts and places as people read them."""

from __future__ import annotations

from urllib.parse import urlsplit

MIB, GIB = 2**20, 2**30
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(size_bytes: float, decimals: int = 1) -> str:
    """A size of memory or of files: in MiB, and from 1 GiB on in GiB with ``decimals``."""
    if size_bytes < GIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / GIB:.{decimals}f} GiB"


def gib(size_bytes: float) -> str:
    """A size that is compared with others: always in GiB."""
    return f"{size_bytes / GIB:.2f} GiB"


def human(size_bytes: int) -> str:
    """A size of any kind, in the unit that suits it."""
    value, unit = float(size_bytes), "B"
    for unit in UNITS:
        if value < 1024 or unit == UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """``1 build``, ``2 builds``, ``1,000 builds``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time that somebody waits for: ``40 s``, ``3 min``, ``1 h 20 min``, ``2 days 3 h``."""
    if seconds < 60:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def shortened(text: str, width: int) -> str:
    """``text`` in at most ``width`` characters: without its middle, for names differ at their
    ends."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - half]}…{text[-half:]}"


def unanswered(url: str, *, is_known: bool = True) -> str:
    """That nobody can be asked at ``url``, of which host and port are told; ``is_known``: whether
    its host's name leads anywhere."""
    if not is_known:
        return f"the name {urlsplit(url).hostname} does not resolve"
    return f"nothing answers at {place(url)}"


def place(url: str) -> str:
    """Host and port of ``url``, which may hold secrets besides."""
    parts = urlsplit(url)
    host, port = parts.hostname or "the server", parts.port
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port or {'https': 443}.get(parts.scheme, 80)}" if parts.hostname else shown
