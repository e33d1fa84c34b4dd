"""What a plan reads of a repository: what the hub publishes, small files whole, weights' headers.

``listing.json`` and ``view/`` in a repository's folder remember it. Nothing vouches for a header.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

from phipipe.errors import SourceError, StoreError
from phipipe.hub import client, client_cache, exchange, transfer
from phipipe.hub.client import Listing, Repository
from phipipe.hub.parts import (
    alone,
    base_name,
    copy_checked,
    download,
    folder_of,
    is_weights,
    need_network,
    part_of,
)
from phipipe.hub.published import Published
from phipipe.models import weights
from phipipe.store import keys

HEAD_BYTES = 2**16  # read first of a safetensors file: most headers fit


def listing(repo: Repository, file: str | None = None) -> Listing:
    """What the hub publishes, as it told us once."""
    path = folder_of(repo, file) / "listing.json"
    if known := remembered(path):
        return known
    if client.is_offline():
        cached = client_cache.cached_listing(repo, file)
        if cached is None:
            what = f"`{repo}`" if file is None else f"`{file}` of `{repo}`"
            raise SourceError(
                f"{what} is not in the cache, and HF_HUB_OFFLINE is set",
                hint=client.OFFLINE_HINT,
            )
        return cached  # not remembered: the hub client's cache need not have all files
    published = (
        client.single(repo, file) if file and repo.kind == "dataset" else client.listing(repo, file)
    )
    write(path, keys.seal_record(dataclasses.asdict(published)))
    return published


def remembered(path: Path) -> Listing | None:
    """The listing that was written to ``path``; None, to be asked for again, if it is absent or
    damaged."""
    try:
        raw = path.read_bytes() if path.is_file() else b""
        written = json.loads(raw)
        if "check" in written:  # listings of earlier versions have none
            written = keys.open_sealed(raw)
        files = tuple(Published(**file) for file in written["files"])
        known = Listing(files, tuple(written["pickles"]), written["licence"])
        if "ggufs" not in written and known.has_weights:  # earlier versions did not look for them
            return known
        return dataclasses.replace(known, ggufs=tuple(written["ggufs"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, StoreError):
        return None


def complete(repo: Repository, files: Sequence[Published], view: Path) -> None:
    """Fetch what ``view`` lacks: every file whole, of weights the header."""
    view.mkdir(parents=True, exist_ok=True)
    for file in files:
        if is_weights(file) and not _is_head(view / base_name(file.name)):
            write(view / base_name(file.name), _head(repo, file))
    missing = [file for file in files if not is_weights(file) and not _is_there(repo, file, view)]
    if missing:
        with alone(view.parent):
            parts = view.parent / "parts"
            download(repo, missing, parts)
            for file in missing:
                part_of(parts, file).replace(view / base_name(file.name))


def _is_there(repo: Repository, file: Published, view: Path) -> bool:
    """Whether ``view`` has ``file`` whole, if need be from the hub client's cache."""
    target = view / base_name(file.name)
    return file.matches(target) or copy_checked(client_cache.cached(repo, file.name), target, file)


def write(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    aside.write_bytes(data)
    aside.replace(path)


def _is_head(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        raw = path.read_bytes()
        return len(raw) >= 8 and len(raw) == _head_bytes(raw)
    return False


def _head_bytes(raw: bytes) -> int:
    """How many bytes the header and its length take, as the first 8 bytes say; no more than a
    header may have."""
    length = struct.unpack("<Q", raw[:8])[0] if len(raw) >= 8 else 0
    return 8 + int(length) if length <= weights.MAX_HEADER_BYTES else 8


def _head(repo: Repository, file: Published) -> bytes:
    """The header of a safetensors file."""
    there = client_cache.cached(repo, file.name)
    if there:
        with there.open("rb") as stream:
            raw = stream.read(8)
            return raw + stream.read(_head_bytes(raw) - 8)
    need_network(repo, file)
    address = repo.address(file.name)
    with exchange.client() as pool:
        raw = transfer.span(pool, address, file, HEAD_BYTES)
        if _head_bytes(raw) > len(raw):
            raw = transfer.span(pool, address, file, _head_bytes(raw))
    return raw[: _head_bytes(raw)]
