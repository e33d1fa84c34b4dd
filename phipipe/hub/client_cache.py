"""What the hub's own client has in its cache, on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from phipipe.hub import exchange
from phipipe.hub.client import Listing, Repository, is_allowed
from phipipe.hub.published import Published


def _home() -> Path:
    """Where the hub's own client keeps its downloads."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(os.path.expanduser(os.path.expandvars(folder)))  # noqa: PTH111 (never raises)
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expanduser(os.path.expandvars(home))) / "hub"  # noqa: PTH111
    return Path(str(exchange.library().constants.HF_HUB_CACHE))


def cached(repo: Repository, file: str) -> Path | None:
    """``file`` in the hub client's own cache, unchecked; None if it is not there."""
    path = exchange.library().try_to_load_from_cache(
        repo.name, file, cache_dir=_home(), revision=repo.revision, repo_type=repo.kind
    )
    return Path(path) if isinstance(path, str) else None


def cached_listing(repo: Repository, file: str | None = None) -> Listing | None:
    """What the hub client's own cache has of ``repo`` (of its one ``file``), None where it cannot
    vouch for it.

    Its blobs are named by the hash that the hub published. Where links are not possible it keeps
    plain copies, without hashes: then the hub has to be asked once.
    """
    snapshot = (
        _home() / f"{repo.kind}s--{repo.name.replace('/', '--')}" / "snapshots" / repo.revision
    )
    if not snapshot.is_dir():
        return None
    names = (
        [file]
        if file
        else sorted(path.name for path in snapshot.iterdir() if is_allowed(path.name))
    )
    files = []
    for name in names:
        blob = (snapshot / name).resolve()
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name) or not blob.is_file():
            return None
        algorithm = "sha256" if len(blob.name) == 64 else "git-sha1"
        files.append(Published(name, blob.stat().st_size, algorithm, blob.name))
    return Listing(tuple(files)) if files else None
