"""Steps whose files stay where the user has them: a checkpoint that is read in place, and one whose
settings were mended over it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from phipipe.errors import PhipipeError, SourceError
from phipipe.execution.results import Results
from phipipe.hub import taking
from phipipe.steps import Json, Step
from phipipe.store import digests, keys, lent
from phipipe.store.records import Stored
from phipipe.store.store import Store


def place_of(step: Step, inputs: Results) -> Path | None:
    """The user's folder that ``step`` reads in place, itself or what it changes; None where all its
    files are the store's."""
    if not step.borrows:
        return None
    if step.outside:
        return next(iter(step.outside.values())).folder
    places = [result.stored.place for result in inputs.values() if result.stored.place]
    return places[0] if places else None


def placed(stored: Stored | None, place: Path | None) -> Stored | None:
    """``stored`` with its files in ``place``, where its step finds them now; None if it has files
    in no place, and they are to be copied."""
    if stored is None or stored.place is None:
        return stored
    return None if place is None else replace(stored, place=place)


def taken(step: Step, key: str, record: Mapping[str, Json], store: Store) -> Stored:
    """Enter the files of ``step``, which copies none, as the result ``key``.

    Raises:
        SourceError: they changed since the key was made, or are no checkpoint.
    """
    (name, source), *_ = step.outside.items()
    found = digests.entries(source, store.root)
    entries = [keys.FileEntry(n, int(f["size"]), str(f["sha256"])) for n, f in found.items()]
    if keys.tree_digest(entries) != record["inputs"][name]:
        digests.forget(source, store.root)
        raise changed(source.folder)
    stored = store.lend(key, source.folder, found, record)
    taking.vet(store.consume(stored))
    return stored


def mended(
    key: str, place: Path, inputs: Results, out: Path, record: Mapping[str, Json], store: Store
) -> Stored:
    """Enter what a step left in ``out`` as the result ``key``: links are files of ``place`` as one
    of ``inputs`` has them, all else is its own."""
    (base,) = (result.stored for result in inputs.values() if result.stored.place)
    known = {str(output["path"]): output for output in base.outputs}
    links = {path.name: known[path.name] for path in out.iterdir() if path.is_symlink()}
    for name in links:
        (out / name).unlink()
    return store.lend(key, place, links, record, own=out)


def changed(folder: Path) -> SourceError:
    """What to say where the files of a step are not those of its key any more."""
    return SourceError(f"`{folder}` changed while it was read", hint="run the same command again")


@contextmanager
def watched(inputs: Results, store: Store) -> Iterator[None]:
    """While a step reads ``inputs``: whatever it makes counts only if what is read in place is
    afterwards what it was before; else that is why it failed.

    Raises:
        SourceError: it is not.
    """
    places = [result.stored for result in inputs.values() if result.stored.place]
    try:
        yield
    except PhipipeError:
        for stored in places:
            lent.check(stored, store.root)
        raise
    for stored in places:
        lent.check(stored, store.root)
