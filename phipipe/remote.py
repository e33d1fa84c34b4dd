"""How a model and a text come from a hub: what planning needs at once, the weights as a step.

``<cache>/hub/<kind>s/<owner>/<name>/<commit>/`` holds ``listing.json`` (what the hub publishes),
``view/`` (small files whole, of each safetensors file its header alone, all that a plan reads),
``parts/`` (downloads on their way, which a killed run leaves for the next, or for `cache gc`:
``downloads``) and ``whole/`` (all files, until the store takes them). A commit never changes, so
what was asked once is never asked again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe import (
    chat_templates,
    hub_client,
    keys,
    models,
    progress,
    room,
    text_files,
    transfer,
    weights,
)
from phipipe.backends.base import Inputs, Params, Step
from phipipe.errors import SourceError, StoreError
from phipipe.hub_client import Listing, Repository
from phipipe.models import Checkpoint
from phipipe.settings import Settings
from phipipe.transfer import Published

if TYPE_CHECKING:
    from phipipe.recipe import Dataset, Source

HEAD_BYTES = 2**16  # read first of a safetensors file: most headers fit
MIB = 2**20


def model_of(source: Source) -> Repository:
    """The repository that a recipe's ``source`` names."""
    return Repository("model", str(source.repo), str(source.revision))


def dataset_of(dataset: Dataset) -> Repository:
    """The repository that a recipe's data set names."""
    return Repository("dataset", dataset.repo, dataset.revision)


def checkpoint_of(repo: Repository) -> tuple[Checkpoint, Listing]:
    """The model's shape and files, without its weights: a few requests the first time, then none.

    Raises:
        SourceError: it cannot be had, is no checkpoint, or wants code to be run; see
            ``models.read``.
        StoreError: the cache cannot be written.
    """
    with _writing(_folder(repo)):
        found = _listing(repo)
        if found.pickles and not any(file.name.endswith(".safetensors") for file in found.files):
            raise SourceError(
                f"`{repo}` holds its weights as pickles only (`{found.pickles[0]}`); loading "
                f"those can run code",
                hint="take a repository with safetensors files",
            )
        view = _folder(repo) / "view"
        _complete_view(repo, found.files, view)
        try:
            return _read(repo, found, view)
        except SourceError:
            if hub_client.is_offline():
                raise
        for file in found.files:  # nothing vouches for a header: it may have been damaged here
            if _is_weights(file):
                (view / file.name).unlink(missing_ok=True)
        _complete_view(repo, found.files, view)
        return _read(repo, found, view)


def _read(repo: Repository, found: Listing, view: Path) -> tuple[Checkpoint, Listing]:
    """The model, and of its listing the files that are part of it."""
    with _named(repo, view):
        checkpoint = models.read(view, {file.name: file.size for file in found.files})
        ignored = weights.choose(view).ignored
    kept = tuple(file for file in found.files if file.name not in ignored)
    return checkpoint, dataclasses.replace(found, files=kept) if ignored else found


def is_known(repo: Repository) -> bool:
    """Whether the hub was asked before what ``repo`` holds, and the cache remembers."""
    return _remembered(_folder(repo) / "listing.json") is not None


def text_of(dataset: Dataset) -> Path:
    """The data set's file, downloaded and verified: for those who have to look into it before any
    step.

    Raises:
        SourceError: it cannot be had.
        StoreError: the cache cannot be written.
    """
    repo = dataset_of(dataset)
    view = _folder(repo, dataset.file) / "view"
    with _writing(view):
        _complete_view(repo, _listing(repo, dataset.file).files, view)
    return view / _base(dataset.file)


def source_step(repo: Repository, found: Listing) -> Step:
    """The step that downloads the model's files; its key says which repository, commit and hashes,
    and nothing else."""
    return _step("source", repo, found, _folder(repo))


def text_step(dataset: Dataset, name: str) -> Step:
    """The step that downloads the data set's file.

    Raises:
        SourceError: the hub does not have it.
        StoreError: the cache cannot be written.
    """
    repo = dataset_of(dataset)
    with _writing(_folder(repo)):
        return _step(name, repo, _listing(repo, dataset.file), _folder(repo, dataset.file))


def _step(name: str, repo: Repository, found: Listing, folder: Path) -> Step:
    files = [dataclasses.asdict(file) for file in found.files]
    return Step(
        name=name,
        runs="phipipe.remote:fetch",
        version=1,
        params={"kind": repo.kind, "repo": repo.name, "revision": repo.revision, "files": files},
        folder=folder / "whole",
        output_bytes=sum(file.size for file in found.files),
    )


def fetch(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: put the published files into ``out``: from the cache, from the hub client's cache, or
    over the network.

    Whatever its way, a file is hashed on it. Partial downloads stay in the cache until all files
    are there, and these stay in ``out`` until they are stored.

    Raises:
        SourceError: a file cannot be had, or is not what was published; the checkpoint's files
            disagree.
        StoreError: there is no room, or the disk fails.
    """
    repo = Repository(params["kind"], params["repo"], params["revision"])
    files = [Published(**file) for file in params["files"]]
    folder = _folder(repo, files[0].name if repo.kind == "dataset" else None)
    with _writing(folder), _alone(folder):
        for path in out.iterdir():
            if path.name not in {_base(file.name) for file in files}:  # a copy that was cut short
                path.unlink()
        missing = [file for file in files if not _at_hand(repo, file, folder, out)]
        needed = _check_room(repo, missing, folder / "parts")
        with _writing(folder, needed):
            _download(repo, missing, folder / "parts")
        for file in missing:
            shutil.move(_part(folder / "parts", file), out / _base(file.name))
    if repo.kind == "dataset":
        text_files.check(out / _base(files[0].name), f"{repo}/{files[0].name}")
        return
    with _named(repo, out):
        models.read(out)
        chat_templates.check(out)


def _folder(repo: Repository, file: str | None = None) -> Path:
    folder = Settings.read().cache / "hub" / f"{repo.kind}s" / repo.name / repo.revision
    return folder / hashlib.sha256(file.encode()).hexdigest()[:16] if file else folder


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _part(parts: Path, file: Published) -> Path:
    return parts / f"{_base(file.name)}.part"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Others may read the cache meanwhile, but no other process writes the same partial files."""
    from filelock import FileLock

    (folder / "parts").mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        yield


def _is_weights(file: Published) -> bool:
    return file.name.endswith(".safetensors")


@contextlib.contextmanager
def _writing(folder: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """The system's refusals in words; a full disk takes nothing that was there."""
    # toolchains, which import this module too, need not have what it needs
    from phipipe import refusals

    with refusals.guard(folder, needed_bytes):
        yield


@contextlib.contextmanager
def _named(repo: Repository, folder: Path) -> Iterator[None]:
    """Errors that speak of ``folder``, a place of ours, speak of the repository."""
    try:
        yield
    except SourceError as error:
        said = error.message.replace(f"{folder}{os.sep}", f"{repo}/").replace(
            str(folder), str(repo)
        )
        look = f"look at {_page(repo)}"
        raise SourceError(said, hint=f"{error.hint}; {look}" if error.hint else look) from None


def _page(repo: Repository) -> str:
    return f"{repo.page}/tree/{repo.revision}"


def _listing(repo: Repository, file: str | None = None) -> Listing:
    """What the hub publishes, as it told us once."""
    path = _folder(repo, file) / "listing.json"
    if known := _remembered(path):
        return known
    if hub_client.is_offline():
        found = hub_client.cached_listing(repo, file)
        if found is None:
            what = f"`{repo}`" if file is None else f"`{file}` of `{repo}`"
            raise SourceError(
                f"{what} is not in the cache, and HF_HUB_OFFLINE is set",
                hint=hub_client.OFFLINE_HINT,
            )
        return found  # not remembered: the hub client's cache need not have all files
    found = hub_client.single(repo, file) if file else hub_client.listing(repo)
    _write(path, keys.seal_record(dataclasses.asdict(found)))
    return found


def _remembered(path: Path) -> Listing | None:
    try:
        raw = path.read_bytes() if path.is_file() else b""
        told = json.loads(raw)
        if "check" in told:  # listings of earlier versions have none
            told = keys.open_sealed(raw)
        files = tuple(Published(**file) for file in told["files"])
        return Listing(files, tuple(told["pickles"]), told["licence"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        StoreError,
    ):  # absent or damaged: asked for again
        return None


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    aside.write_bytes(data)
    aside.replace(path)


def _complete_view(repo: Repository, files: Sequence[Published], view: Path) -> None:
    """Fetch what ``view`` lacks: every file whole, of weights the header."""
    view.mkdir(parents=True, exist_ok=True)
    parts, whole = view.parent / "parts", []
    for file in files:
        target = view / _base(file.name)
        if _is_weights(file):
            if not _is_head(target):
                _write(target, _head(repo, file))
        elif not file.matches(target) and not _copy(
            hub_client.cached(repo, file.name), target, file
        ):
            whole.append(file)
    if whole:
        with _alone(view.parent):
            _download(repo, whole, parts)
            for file in whole:
                _part(parts, file).replace(view / _base(file.name))


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
    if there := hub_client.cached(repo, file.name):
        with there.open("rb") as stream:
            raw = stream.read(8)
            return raw + stream.read(_head_bytes(raw) - 8)
    _need_network(repo, file)
    remote = repo.remote(file.name)
    with transfer.client() as pool:
        raw = transfer.head(pool, remote, file, HEAD_BYTES)
        if _head_bytes(raw) > len(raw):
            raw = transfer.head(pool, remote, file, _head_bytes(raw))
    return raw[: _head_bytes(raw)]


def _need_network(repo: Repository, file: Published) -> None:
    if hub_client.is_offline():
        message = f"`{file.name}` of `{repo}` is not in the cache, and HF_HUB_OFFLINE is set"
        raise SourceError(message, hint=hub_client.OFFLINE_HINT)


def _at_hand(repo: Repository, file: Published, folder: Path, out: Path) -> bool:
    """Copy ``file`` into ``out`` from this machine, if it is here and is what was published."""
    target = out / _base(file.name)
    if file.matches(target):  # from a run that was killed when all was there
        return True
    if not _is_weights(file) and _copy(folder / "view" / _base(file.name), target, file):
        return True
    part = _part(folder / "parts", file)
    if (
        part.exists() and not hub_client.is_offline()
    ):  # on its way: its hash is checked as it is completed
        return False
    if part.exists() and file.matches(part):
        shutil.move(part, target)
        return True
    return _copy(hub_client.cached(repo, file.name), target, file)


def _copy(source: Path | None, target: Path, file: Published) -> bool:
    """Copy ``source`` to ``target``, hashing what is copied; False, and no ``target``, if it is not
    ``file``."""
    if source is None or not source.is_file() or source.stat().st_size != file.size:
        return False
    found = file.hash()
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    with source.open("rb") as reading, aside.open("wb") as writing:
        while chunk := reading.read(transfer.CHUNK):
            found.update(chunk)
            writing.write(chunk)
    if found.hexdigest() != file.digest:
        aside.unlink()
        return False
    aside.replace(target)
    return True


def _check_room(repo: Repository, files: Sequence[Published], parts: Path) -> int:
    """Bytes of ``files`` that are still to come; refused where the disk cannot hold them."""
    needed = sum(file.size - _size(_part(parts, file)) for file in files)
    free = shutil.disk_usage(parts).free
    if needed > free:
        raise StoreError(
            f"`{repo}` needs {needed / MIB:.0f} MiB more, and `{Settings.read().cache}` has "
            f"{free / MIB:.0f} MiB free",
            hint=room.KEEP_CACHE,
        )
    return needed


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download(repo: Repository, files: Sequence[Published], parts: Path) -> None:
    """Bring all ``files`` over the network, whole and verified, into their partial files."""
    if not files:
        return
    _need_network(repo, files[0])
    transfer.fetch_all(
        [(repo.remote(file.name), file, _part(parts, file)) for file in files], _reporter(files)
    )


def _reporter(files: Sequence[Published]) -> Callable[[int], None]:
    total = sum(file.size for file in files) // MIB
    return lambda there: progress.report(min(there // MIB, total), total, "MiB")
