"""How a package gets here: into a folder beside its place, verified there, then moved at once.

What had arrived when a download broke lies in ``.NAME.pull`` beside the target and is completed by
the next one. What turns out to be no package, or another than its publisher says, is removed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from phipipe.errors import PhipipeError, SourceError, StoreError
from phipipe.evaluate import papers
from phipipe.files import json_files
from phipipe.hub.failures import OtherBytes
from phipipe.hub.published import Published
from phipipe.package import package as packages
from phipipe.package import provenance
from phipipe.package.closed_world import MAX_ATTACHED_BYTES
from phipipe.package.manifest import Finding
from phipipe.package.manifest_schema import Manifest
from phipipe.publishing import places
from phipipe.publishing.place import Place, Seen
from phipipe.recipe import addresses
from phipipe.store import files, free_space, refusals
from phipipe.words import counted, human

OnProgress = Callable[[int, int], None]
PACKAGES = Path("packages")  # where `phipipe run` puts packages, too
LOCK_S = 600


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What became of a pull. ``attached``: names of what lies beside the manifest; ``renewed``:
    those that were fetched for a package that was there (``state`` "same")."""

    address: str
    name: str
    digest: str
    folder: Path
    state: Literal["pulled", "same"]
    fetched_bytes: int
    attached: tuple[str, ...]
    renewed: tuple[str, ...] = ()


def pull(
    address: str,
    out: Path | None = None,
    on_progress: OnProgress = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> Pulled:
    """Fetch the package at ``address`` into the folder ``out``; without one into
    ``packages/NAME``. Where it is there already, what is attached to it is brought up to date.
    ``note`` hears of waits.

    Raises:
        RecipeError: ``address`` is none.
        SourceError: there is no package, it is not what it says, something else is at ``out``; or
            the place refuses or does not answer.
        StoreError: it cannot be written.
        ToolchainError: what speaks to such places is not installed.
    """
    with contextlib.closing(places.of(addresses.parse(address), note=note)) as place:
        seen = place.look()
        if seen.manifest is None:
            more = ", only other files" if seen.foreign else ""
            raise SourceError(
                f"there is no package at `{place.address}`{more}",
                hint="check the address; a private place needs a token of one who may read it",
            )
        manifest = _understood(seen.manifest, str(place.address))
        target = out or PACKAGES / manifest.name
        with refusals.guard(target.parent, remedy=free_space.KEEP_OUT):
            if _is_there(target, manifest, str(place.address)):
                renewed = _renew(place, seen, manifest, target, on_progress)
                size = sum(file.size for file in renewed)
                names = tuple(file.name for file in renewed)
                return _pulled(place, manifest, target, size, "same", names)
            size = _arrive(place, seen, manifest, target, on_progress)
        return _pulled(place, manifest, target, size, "pulled")


def _pulled(
    place: Place,
    manifest: Manifest,
    target: Path,
    size: int,
    state: Literal["pulled", "same"],
    renewed: tuple[str, ...] = (),
) -> Pulled:
    return Pulled(
        address=str(place.address),
        name=manifest.name,
        digest=manifest.digest,
        folder=target,
        state=state,
        fetched_bytes=size,
        attached=tuple(name for name in papers.ATTACHED if (target / name).is_file()),
        renewed=renewed,
    )


def _understood(raw: bytes, address: str) -> Manifest:
    """``raw`` as a manifest that phipipe would write.

    Raises:
        SourceError: it is none; a newer phipipe wrote it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / papers.MANIFEST).write_bytes(raw)
        try:
            return packages.read_manifest(folder)
        except SourceError as error:
            message = error.message.replace(str(folder), address)
            raise type(error)(message, hint="ask whoever published it") from None


def _is_there(target: Path, manifest: Manifest, address: str) -> bool:
    """Whether the very package is at ``target`` already.

    Raises:
        SourceError: something else is.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    with contextlib.suppress(SourceError):
        there = packages.read_manifest(target)
        if there.digest != manifest.digest:
            raise StoreError(
                f"`{target}` holds another package: {there.digest} is there, {manifest.digest} "
                f"is at `{address}`",
                hint="choose another --out, or remove that folder",
            )
        if not packages.verify(target):
            return True
    raise StoreError(
        f"`{target}` is in the way: it is not the package at `{address}`, or was changed",
        hint="choose another --out, or remove it",
    )


def _arrive(
    place: Place, seen: Seen, manifest: Manifest, target: Path, on_progress: OnProgress
) -> int:
    """Bring the package to ``target``; the bytes that it has."""
    wanted = [Published(e.path, e.size, "sha256", e.sha256) for e in manifest.files]
    told = place.described()
    _compare(wanted, told, str(place.address))
    attached = [told[name] for name in papers.ATTACHED if name in told]
    with _unfinished(target, manifest.digest) as folder:
        _check_room(folder, wanted)
        for file in (*wanted, *attached):
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        total = sum(file.size for file in (*wanted, *attached))
        try:
            place.fetch([*wanted, *attached], folder, lambda there: on_progress(there, total))
            (folder / papers.MANIFEST).write_bytes(seen.manifest or b"")
            _verify(folder, str(place.address))
        except (OtherBytes, _Refused):
            files.remove(folder)
            raise
        names = [file.name for file in (*wanted, *attached)]
        files.flush_tree(folder, [*names, papers.MANIFEST])
        if target.is_dir():
            target.rmdir()  # it is empty
        folder.rename(target)
    return total


def _renew(
    place: Place, seen: Seen, manifest: Manifest, target: Path, on_progress: OnProgress
) -> list[Published]:
    """Bring what is attached at the address and is another in ``target``, or missing there; what
    came. The digest says nothing of it: a signature may be made after the package, or anew."""
    told = place.described()
    _check_attached(told, str(place.address))
    attached = [told[name] for name in papers.ATTACHED if name in told]
    wanted = [file for file in attached if not file.matches(target / file.name)]
    if not wanted:
        return []
    total = sum(file.size for file in wanted)
    with _unfinished(target, manifest.digest) as aside:
        folder = aside / "attached"
        files.remove(folder)  # of an attempt that broke; they are short
        folder.mkdir()
        try:
            place.fetch(wanted, folder, lambda there: on_progress(there, total))
            (folder / papers.MANIFEST).write_bytes(seen.manifest or b"")
            _refuse([*provenance.findings(folder, manifest)], str(place.address))
        except (OtherBytes, _Refused):
            files.remove(aside)
            raise
        files.flush_tree(folder, [file.name for file in wanted])
        # some places give no hash by which one knows beforehand
        changed = [file for file in wanted if not _is_same(folder / file.name, target / file.name)]
        for file in changed:
            (folder / file.name).replace(target / file.name)
        files.flush_tree(target, [file.name for file in changed])
    return changed


def _is_same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


class _Refused(SourceError):
    """What came is no package as phipipe makes it."""


def _compare(wanted: Sequence[Published], told: Mapping[str, Published], address: str) -> None:
    """Refuse a place that says of files what the manifest does not."""
    for file in wanted:
        other = told.get(file.name)
        if told and other is None:
            raise SourceError(
                f"`{address}` is not whole: `{file.name}` is missing there",
                hint="whoever published it can push it again",
            )
        alike = other is None or (
            other.size == file.size
            and (other.algorithm != file.algorithm or other.digest == file.digest)
        )
        if not alike:
            raise SourceError(
                f"`{address}` contradicts its manifest: `{file.name}` has another size or hash",
                hint="whoever published it can push it again",
            )
    _check_attached(told, address)


def _check_attached(told: Mapping[str, Published], address: str) -> None:
    for name in papers.ATTACHED:
        if name in told and told[name].size > MAX_ATTACHED_BYTES:
            raise SourceError(f"`{name}` at `{address}` is larger than any such file")


def _check_room(folder: Path, wanted: Sequence[Published]) -> None:
    there = sum(files.size_of(folder / file.name) for file in wanted)
    needed, free = sum(file.size for file in wanted) - there, shutil.disk_usage(folder).free
    if needed > free:
        raise StoreError(
            f"the package needs {human(needed)} more, and `{folder.parent.parent}` has "
            f"{human(free)} free",
            hint="make room, or choose another --out",
        )


def _verify(folder: Path, address: str) -> None:
    """The one check that counts: all files by the manifest, nothing more, nothing that runs."""
    _refuse(packages.verify(folder), address)


def _refuse(findings: Sequence[Finding], address: str) -> None:
    if findings:
        first = json_files.shown(str(findings[0]))
        raise _Refused(
            f"`{address}` is not as phipipe packages it: {first} "
            f"({counted(len(findings), 'finding')}); nothing was kept",
            hint="ask whoever published it",
        )


@contextlib.contextmanager
def _unfinished(target: Path, digest: str) -> Iterator[Path]:
    """The folder in which a package arrives, for one process at a time."""
    from filelock import FileLock

    aside = target.parent / f".{target.name}.pull"
    aside.mkdir(parents=True, exist_ok=True)
    folder = aside / digest[:16]
    keep = False
    try:
        with FileLock(aside / "lock", timeout=LOCK_S):
            folder.mkdir(exist_ok=True)
            try:
                yield folder
            except BaseException as error:
                keep = folder.exists() and not (
                    isinstance(error, PhipipeError) and not any(folder.iterdir())
                )
                raise
    finally:
        if not keep:
            files.remove(aside)
