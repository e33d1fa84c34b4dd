"""Files of a repository on their way into the cache: from the hub client's own, or by network.

``parts/`` in a repository's folder holds what is not whole yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from phipipe import progress, words
from phipipe.errors import SourceError, StoreError
from phipipe.hub import client, client_cache, transfer
from phipipe.hub.client import Repository
from phipipe.hub.published import CHUNK, Published
from phipipe.settings import Settings
from phipipe.words import MIB


def folder_of(repo: Repository, file: str | None = None) -> Path:
    folder = Settings.read().cache / "hub" / f"{repo.kind}s" / repo.name / repo.revision
    return folder / hashlib.sha256(file.encode()).hexdigest()[:16] if file else folder


def base_name(name: str) -> str:
    return name.rpartition("/")[2]


def part_of(parts: Path, file: Published) -> Path:
    return parts / f"{base_name(file.name)}.part"


def is_weights(file: Published) -> bool:
    return file.name.endswith(".safetensors")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Others may read the cache meanwhile, but no other process writes the same partial files."""
    from filelock import FileLock

    (folder / "parts").mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        yield


def need_network(repo: Repository, file: Published) -> None:
    if client.is_offline():
        message = f"`{file.name}` of `{repo}` is not in the cache, and HF_HUB_OFFLINE is set"
        raise SourceError(message, hint=client.OFFLINE_HINT)


def is_at_hand(repo: Repository, file: Published, folder: Path, out: Path) -> bool:
    """Copy ``file`` into ``out`` from this machine, if it is here and is what was published."""
    target = out / base_name(file.name)
    if file.matches(target):  # from a run that was killed when all was there
        return True
    if not is_weights(file) and copy_checked(folder / "view" / base_name(file.name), target, file):
        return True
    part = part_of(folder / "parts", file)
    # on its way: its hash is checked as it is completed
    if part.exists() and not client.is_offline():
        return False
    if part.exists() and file.matches(part):
        shutil.move(part, target)
        return True
    return copy_checked(client_cache.cached(repo, file.name), target, file)


def copy_checked(source: Path | None, target: Path, file: Published) -> bool:
    """Copy ``source`` to ``target``, hashing what is copied; False, and no ``target``, if it is not
    ``file``."""
    if source is None or not source.is_file() or source.stat().st_size != file.size:
        return False
    digest = file.hash()
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    with source.open("rb") as reading, aside.open("wb") as writing:
        while chunk := reading.read(CHUNK):
            digest.update(chunk)
            writing.write(chunk)
    if digest.hexdigest() != file.digest:
        aside.unlink()
        return False
    aside.replace(target)
    return True


def check_room(repo: Repository, files: Sequence[Published], parts: Path) -> int:
    """Bytes of ``files`` that are still to come; refused where the disk cannot hold them."""
    needed = sum(file.size - _size(part_of(parts, file)) for file in files)
    free = shutil.disk_usage(parts).free
    if needed > free:
        from phipipe.store import room  # which toolchains have not

        raise StoreError(
            f"`{repo}` needs {words.size(needed)} more, and `{Settings.read().cache}` has "
            f"{words.size(free)} free",
            hint=room.hint(Settings.read().cache, needed),
        )
    return needed


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def download(repo: Repository, files: Sequence[Published], parts: Path) -> None:
    """Bring all ``files`` over the network, whole and verified, into their partial files."""
    if not files:
        return
    need_network(repo, files[0])
    transfer.fetch_all(
        [(repo.address(file.name), file, part_of(parts, file)) for file in files], _reporter(files)
    )


def _reporter(files: Sequence[Published]) -> Callable[[int], None]:
    total = sum(file.size for file in files) // MIB
    return lambda there: progress.report(min(there // MIB, total), total, "MiB")
