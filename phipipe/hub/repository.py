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
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.hub import client
from phipipe.hub import view as hub_view
from phipipe.hub.client import Listing, Repository
from phipipe.hub.parts import (
    alone,
    base_name,
    check_room,
    download,
    folder_of,
    is_at_hand,
    is_weights,
    part_of,
)
from phipipe.hub.published import Published
from phipipe.models import (
    adapter_files,
    checkpoints,
    finite,
    gguf_checkpoints,
    gguf_files,
    gguf_finite,
    texts,
    weight_files,
)
from phipipe.models.checkpoint import Checkpoint
from phipipe.sandbox import chat_templates
from phipipe.steps import Inputs, Params, Step

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Dataset
    from phipipe.recipe.source import Adapter, Source


def model_of(source: Source | Adapter) -> Repository:
    """The repository that a recipe's ``source`` names."""
    return Repository("model", str(source.repo), str(source.revision))


def dataset_of(dataset: Dataset) -> Repository:
    """The repository that a recipe's data set names."""
    return Repository("dataset", dataset.repo, dataset.revision)


def checkpoint_of(repo: Repository) -> tuple[Checkpoint, Listing]:
    """The model's shape and files, without its weights: a few requests the first time, then none.

    Raises:
        SourceError: it cannot be had, is no checkpoint, or wants code to be run; see
            ``checkpoints.read``.
        StoreError: the cache cannot be written.
    """
    with writing(folder_of(repo)):
        listing = hub_view.listing(repo)
        if not listing.has_weights:
            _refuse_others(repo, listing)
        view = folder_of(repo) / "view"
        hub_view.complete(repo, listing.files, view)
        try:
            return _read(repo, listing, view)
        except SourceError:
            if client.is_offline():
                raise
        for file in listing.files:  # nothing vouches for a header: it may have been damaged here
            if is_weights(file):
                (view / file.name).unlink(missing_ok=True)
        hub_view.complete(repo, listing.files, view)
        return _read(repo, listing, view)


def _refuse_others(repo: Repository, listing: Listing) -> None:
    """Refuse a repository without safetensors by what it has instead."""
    if listing.ggufs:
        first = listing.ggufs[0]
        several = f": {client.shown(listing.ggufs)}" if len(listing.ggufs) > 1 else ""
        raise SourceError(
            f"`{repo}` holds its weights as GGUF files only{several}",
            hint=f"name the one to build from: `source: {{repo: {repo.name}, revision: "
            f"{repo.revision}, file: {json_files.shown(first)}}}`",
        )
    if listing.pickles:
        raise _pickles(repo, listing)


def _pickles(repo: Repository, listing: Listing) -> SourceError:
    return SourceError(
        f"`{repo}` holds its weights as pickles only (`{listing.pickles[0]}`); loading those can "
        f"run code",
        hint="take a repository with safetensors files",
    )


def _read(repo: Repository, listing: Listing, view: Path) -> tuple[Checkpoint, Listing]:
    """The model, and of its listing the files that are part of it."""
    with named(repo, view):
        checkpoint = checkpoints.read(view, {file.name: file.size for file in listing.files})
        ignored = weight_files.choose(view).ignored
    kept = tuple(file for file in listing.files if file.name not in ignored)
    return checkpoint, dataclasses.replace(listing, files=kept) if ignored else listing


def is_adapter(repo: Repository) -> bool:
    """Whether the repository holds an adapter and no model beside it.

    Raises:
        SourceError: the hub does not say.
    """
    with writing(folder_of(repo)):
        names = {file.name for file in hub_view.listing(repo).files}
    return weight_files.ADAPTER in names and not names & {weight_files.WHOLE, weight_files.INDEX}


def adapter_of(repo: Repository) -> tuple[Path, Listing]:
    """The adapter's small files and its weights' header, in a folder, and what its repository
    publishes of it.

    Raises:
        SourceError: it cannot be had, or is no adapter; see ``adapter_files.files``.
        StoreError: the cache cannot be written.
    """
    with writing(folder_of(repo)):
        listing = hub_view.listing(repo)
        if any(n.startswith("adapter_model") for n in listing.pickles) and not any(
            file.name == adapter_files.WEIGHTS for file in listing.files
        ):
            raise _pickles(repo, listing)
        view = folder_of(repo) / "view"
        wanted = (weight_files.ADAPTER, adapter_files.WEIGHTS)
        small = [f for f in listing.files if f.name in wanted or not is_weights(f)]
        hub_view.complete(repo, small, view)
        with named(repo, view):
            names = adapter_files.files(view)
    kept = tuple(file for file in listing.files if file.name in names)
    return view, dataclasses.replace(listing, files=kept)


def is_known(repo: Repository, file: str | None = None) -> bool:
    """Whether the hub was asked before what ``repo`` holds (``file`` alone), and the cache
    remembers."""
    return hub_view.remembered(folder_of(repo, file) / "listing.json") is not None


def text_of(dataset: Dataset) -> Path:
    """The data set's file, downloaded and verified: for those who have to look into it before any
    step.

    Raises:
        SourceError: it cannot be had.
        StoreError: the cache cannot be written.
    """
    repo = dataset_of(dataset)
    view = folder_of(repo, dataset.file) / "view"
    with writing(view):
        hub_view.complete(repo, hub_view.listing(repo, dataset.file).files, view)
    return view / base_name(dataset.file)


def source_step(repo: Repository, listing: Listing, name: str = "source") -> Step:
    """The step that downloads the files of a model or an adapter; its key says which repository,
    commit and hashes, and nothing else."""
    return _step(name, repo, listing, _folder(repo, listing.files))


def text_step(dataset: Dataset, name: str) -> Step:
    """The step that downloads the data set's file.

    Raises:
        SourceError: the hub does not have it.
        StoreError: the cache cannot be written.
    """
    repo = dataset_of(dataset)
    with writing(folder_of(repo)):
        return source_step(repo, hub_view.listing(repo, dataset.file), name)


def _folder(repo: Repository, files: Sequence[Published]) -> Path:
    """Where ``files`` come: what a recipe names as one file has a folder of its own."""
    alone = repo.kind == "dataset" or _is_gguf(files[0].name)
    return folder_of(repo, files[0].name if alone else None)


def _is_gguf(name: str) -> bool:
    return name.lower().endswith(gguf_files.SUFFIX)


def _step(name: str, repo: Repository, listing: Listing, folder: Path) -> Step:
    files = [dataclasses.asdict(file) for file in listing.files]
    return Step(
        name=name,
        runs="hub/fetch",
        version=1,
        params={"kind": repo.kind, "repo": repo.name, "revision": repo.revision, "files": files},
        folder=folder / "whole",
        keep="material",
        output_bytes=sum(file.size for file in listing.files),
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
    folder = _folder(repo, files)
    with writing(folder), alone(folder):
        names = {base_name(file.name) for file in files}
        for path in out.iterdir():
            if path.name not in names:  # a copy that was cut short
                path.unlink()
        missing = [file for file in files if not is_at_hand(repo, file, folder, out)]
        needed = check_room(repo, missing, folder / "parts")
        with writing(folder, needed):
            download(repo, missing, folder / "parts")
        for file in missing:
            shutil.move(part_of(folder / "parts", file), out / base_name(file.name))
    _check(repo, files, out)


def _check(repo: Repository, files: Sequence[Published], out: Path) -> None:
    """Refuse what came into ``out`` if it is not what its kind should be.

    Raises:
        SourceError: says why.
    """
    first = out / base_name(files[0].name)
    if repo.kind == "dataset":
        texts.check(first, f"{repo}/{files[0].name}")
        return
    with named(repo, out):
        if _is_gguf(first.name):
            gguf_checkpoints.read(first)
            gguf_finite.check(first)
        elif any(file.name == weight_files.ADAPTER for file in files):
            adapter_files.tensors(out)
            finite.check_file(out / adapter_files.WEIGHTS, "adapter")
        else:
            checkpoints.read(out)
            finite.check(out)
            chat_templates.check(out)


@contextlib.contextmanager
def writing(folder: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """The system's refusals in words; a full disk takes nothing that was there."""
    # toolchains, which import this module too, need not have what it needs
    from phipipe.store import refusals

    with refusals.guard(folder, needed_bytes):
        yield


@contextlib.contextmanager
def named(repo: Repository, folder: Path) -> Iterator[None]:
    """Errors that speak of ``folder``, a place of ours, speak of the repository."""
    try:
        yield
    except SourceError as error:
        message = error.message.replace(f"{folder}{os.sep}", f"{repo}/")
        message = message.replace(str(folder), str(repo))
        look = f"look at {repo.page}/tree/{repo.revision}"
        hint = f"{error.hint}; {look}" if error.hint else look
        raise SourceError(message, hint=hint) from None
