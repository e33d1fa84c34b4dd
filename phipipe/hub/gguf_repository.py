"""One GGUF of a repository: its header is all that a plan reads, its whole is what a step takes.

A repository of GGUF files holds the same model many times, once for each type of weights. So the
recipe names the one that is meant, and each has a folder of its own in the cache
(``parts.folder_of``). ``view/`` there has the start of the file, as far as its header goes, and
beside it those tensors that a config is made of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.hub import client, client_cache, exchange, repository, transfer
from phipipe.hub import view as hub_view
from phipipe.hub.client import Listing, Repository
from phipipe.hub.parts import base_name, folder_of, need_network
from phipipe.hub.published import Published
from phipipe.models import gguf_checkpoints, gguf_configs, gguf_files
from phipipe.models.checkpoint import Checkpoint
from phipipe.models.gguf_files import Header
from phipipe.settings import Settings

# Bytes that are read first, and how many times as many after that: a vocabulary of 32,000 pieces
# takes 1 MB, one of 150,000 tokens with its merges 6 MB.
FIRST_BYTES, MORE = 2**20, 4
MAX_BYTES = 2**28  # of a header


def checkpoint_of(repo: Repository, file: str) -> tuple[Checkpoint, Listing]:
    """The model in the GGUF ``file`` of ``repo``, from its header alone: a few requests the first
    time, then none.

    Raises:
        SourceError: it cannot be had; see ``gguf_checkpoints.read``.
        StoreError: the cache cannot be written.
    """
    folder = folder_of(repo, file)
    with repository.writing(folder):
        listing = hub_view.listing(repo, file)
        path = folder / "view" / base_name(file)
        with contextlib.suppress(SourceError):  # nothing vouches for it: it may be damaged here
            return _read(repo, listing, path)
        if not client.is_offline():
            for old in path.parent.glob("*"):
                old.unlink()
        return _read(repo, listing, path)


def ggufs_alone(repo: Repository) -> tuple[str, ...]:
    """The GGUF files of a repository that has no other weights.

    Raises:
        SourceError: the hub does not say.
    """
    with repository.writing(folder_of(repo)):
        listing = hub_view.listing(repo)
    return () if listing.has_weights else listing.ggufs


def _read(repo: Repository, listing: Listing, path: Path) -> tuple[Checkpoint, Listing]:
    (file,) = listing.files
    with repository.named(repo, path.parent):
        _complete(repo, file, path)
        checkpoint = gguf_checkpoints.read(path, file.size)
        cache = Settings.read().cache
        return gguf_checkpoints.with_files(checkpoint, cache, file.size), listing


def _complete(repo: Repository, file: Published, path: Path) -> None:
    """Fetch what of ``file`` is not at ``path`` and beside it yet."""
    read = _reading(repo, file)
    there = path.read_bytes() if path.is_file() else b""
    data, header = there, gguf_files.begun(path, there, file.size)
    while header is None:
        if len(data) >= MAX_BYTES:
            raise SourceError(f"`{path}` has a header of more than {MAX_BYTES} bytes")
        data += read(len(data), max(FIRST_BYTES, (MORE - 1) * len(data)))
        header = gguf_files.begun(path, data, file.size)
    if data is not there:
        hub_view.write(path, data)
    _complete_factors(header, len(data), read)


def _complete_factors(header: Header, begun: int, read: Callable[[int, int], bytes]) -> None:
    """Fetch those tensors that a config is made of and that lie behind the first ``begun``
    bytes."""
    for name in gguf_configs.FACTORS:
        tensor, apart = header.tensors.get(name), gguf_files.beside(header.path, name)
        if tensor is None or tensor.size_bytes > gguf_files.MAX_FACTORS or apart.is_file():
            continue
        if tensor.offset + tensor.size_bytes > begun:
            hub_view.write(apart, read(tensor.offset, tensor.size_bytes))


def _reading(repo: Repository, file: Published) -> Callable[[int, int], bytes]:
    """What reads a number of bytes of ``file`` from a place in it: from the hub client's own cache
    if that has it, else by network."""
    there = client_cache.cached(repo, file.name)

    def read(start: int, count: int) -> bytes:
        if there is not None:
            with there.open("rb") as stream:
                stream.seek(start)
                return stream.read(count)
        need_network(repo, file)
        with exchange.client() as pool:
            return transfer.span(pool, repo.address(file.name), file, count, start)

    return read
