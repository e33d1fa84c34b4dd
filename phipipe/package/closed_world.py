"""Whether a folder is exactly the package that its manifest lists: a closed world.

What is attached (provenance, a signature) may lie beside the manifest; what it says is for others
to check.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.evaluate import papers
from phipipe.package.manifest import (
    HINT,
    NAME,
    SUMS,
    Finding,
    Newer,
    folders_of,
    read_manifest,
    sums,
)
from phipipe.package.manifest_schema import File
from phipipe.store import keys

MAX_ADDED = 1000  # files that do not belong there, after which nobody wants to know of more
MAX_ATTACHED_BYTES = 8 * 2**20  # a statement about all files, or their signature
THREADS = min(8, os.cpu_count() or 1)


def verify(folder: Path) -> list[Finding]:
    """Everything by which ``folder`` differs from what was packaged; an empty list if it is intact.

    Reads every byte once and follows no link. Nothing is exempt: no hidden file, no ``.git``.

    Raises:
        SourceError: there is no such folder, or a newer phipipe made the package.
    """
    if not folder.is_dir():
        raise SourceError(f"no package at `{folder}`: there is no such folder", hint=HINT)
    try:
        manifest = read_manifest(folder)
    except Newer:
        raise
    except SourceError as error:
        return [Finding(NAME, error.message)]
    entries = {entry.path: entry for entry in manifest.files}
    try:
        present = _present(folder, entries)
    except OSError as error:
        raise SourceError(f"cannot read `{error.filename}`: {error.strerror}") from None
    if present is None:
        return [
            Finding(".", f"more than {MAX_ADDED} files were added: the package does not list them")
        ]
    findings = [*_misfits(present, entries), *_changes(folder, present, entries)]
    if (
        not any(f.path == SUMS for f in findings)
        and (folder / SUMS).read_bytes() != sums(manifest.files).encode()
    ):
        findings.append(Finding(SUMS, f"does not say what `{NAME}` says"))
    return sorted(findings)


def _present(folder: Path, listed: Mapping[str, File]) -> dict[str, os.stat_result] | None:
    """What lies in ``folder``; None if that is far more than what is ``listed``."""
    folders = folders_of(listed)
    most = len(listed) + len(folders) + MAX_ADDED
    present = dict(islice(_walk(folder, known=folders), most))
    return present if len(present) < most else None


def _misfits(
    present: Mapping[str, os.stat_result], listed: Mapping[str, File]
) -> Iterator[Finding]:
    """What is missing, was added, or is of another kind."""
    folders = folders_of(listed)
    own = (NAME, *papers.ATTACHED)
    for path, status in present.items():
        if message := _misfit(status, path in folders, path in listed or path in own):
            yield Finding(_shown(path), message)
        elif path in papers.ATTACHED and status.st_size > MAX_ATTACHED_BYTES:
            yield Finding(path, f"is larger than {MAX_ATTACHED_BYTES} bytes, as none is")
    yield from (Finding(path, "is missing") for path in listed if path not in present)


def _changes(
    folder: Path, present: Mapping[str, os.stat_result], listed: Mapping[str, File]
) -> list[Finding]:
    """Listed files whose content is another."""
    regular = [listed[p] for p, s in present.items() if p in listed and stat.S_ISREG(s.st_mode)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [f for f in pool.map(lambda entry: _changed(folder, entry), regular) if f]


def _walk(
    folder: Path, known: frozenset[str] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Relative path and own status of everything below ``folder``; does not enter folders outside
    ``known``."""
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        with os.scandir(folder / parent) as listing:
            entries = list(listing)
        for entry in entries:
            path = f"{parent}/{entry.name}" if parent else entry.name
            yield path, entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False) and (known is None or path in known):
                waiting.append(path)


def _misfit(status: os.stat_result, is_folder: bool, is_file: bool) -> str | None:
    """What is wrong with something that lies in the package, apart from its content.

    ``is_folder`` and ``is_file`` say what the manifest expects in its place.
    """
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        return "is a symbolic link"
    if kind == stat.S_IFDIR:
        return None if is_folder else "was added: a folder that the package does not have"
    if kind != stat.S_IFREG:
        return "is neither file nor folder"
    if not is_file:
        return "was added: the package does not list it"
    if os.name != "nt" and status.st_mode & 0o7111:
        return "was made executable: packages hold data only"
    return None


def _changed(folder: Path, entry: File) -> Finding | None:
    path = folder / entry.path
    try:
        size = path.stat().st_size
        if size != entry.size:
            return Finding(entry.path, f"was changed: it has {size} bytes instead of {entry.size}")
        if keys.hash_file(path) != entry.sha256:
            return Finding(entry.path, "was changed: same size, other content")
    except OSError as error:
        return Finding(entry.path, f"cannot be read: {error.strerror}")
    return None


def _shown(path: str) -> str:
    """A name as it may be printed: anything odd escaped."""
    return path if path.isprintable() else ascii(path)[1:-1]
