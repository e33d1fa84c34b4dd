"""Which hub is asked, by whom, and whether at all: what the environment says of it."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from phipipe.errors import SourceError
from phipipe.hub import exchange


def is_offline() -> bool:
    """Whether the user forbade any network (HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """The hub's address, without a slash at the end.

    Raises:
        SourceError: HF_ENDPOINT is none.
    """
    url = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not _is_address(url):
        raise no_address()
    return url


def no_address() -> SourceError:
    """What to say of an HF_ENDPOINT that is none."""
    return SourceError(
        "HF_ENDPOINT is no address of a hub", hint="such as https://hub.example, or unset it"
    )


def _is_address(url: str) -> bool:
    """Whether the hub's client takes ``url``, and it holds no password."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.username is None
            and parts.port != 0
            and re.fullmatch(r"[!-~]+", url) is not None
        )
    except ValueError:  # a port beyond the last one; half a bracket
        return False


def token() -> str | None:
    """The user's token, None if there is none or it could be read on its way to the endpoint."""
    if not exchange.is_private(endpoint()):
        return None
    known = exchange.library().get_token()
    return str(known) if known else None
