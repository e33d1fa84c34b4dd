"""The list that makes a package a closed world: what is in it, and whether it still is exactly
that.

``manifest.json`` names every other file with its size and SHA-256; its own ``digest`` covers the
rest of itself. ``SHA256SUMS`` says the same for people without phipipe. Whoever rewrites all three
consistently is not found out: that takes a signature, which lies apart from the payload.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from phipipe import file_names, json_files, keys
from phipipe.errors import SourceError

NAME = "manifest.json"
SUMS = "SHA256SUMS"
TYPE = "phipipe-package"
FORMAT = 1
MAX_BYTES = 8 * 2**20  # the longest that phipipe has made has 0.2
MAX_ADDED = 1000  # files that do not belong there, after which nobody wants to know of more
THREADS = min(8, os.cpu_count() or 1)

Manifest = dict[str, Any]


class _Newer(SourceError):
    """The package was made by a phipipe that knows more than this one."""


@dataclass(frozen=True, order=True)
class Finding:
    """One way in which a folder is not the package it claims to be."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def dump(value: object) -> str:
    """The one way in which our JSON files are written; also what ``digest`` is taken over."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over everything in the manifest but ``digest`` itself."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(dump(rest).encode()).hexdigest()


def sums(entries: Iterable[Mapping[str, Any]]) -> str:
    """The text of ``SHA256SUMS``, for ``sha256sum -c``."""
    return "".join(
        f"{e['sha256']}  {e['path']}\n" for e in entries if e["path"] not in (NAME, SUMS)
    )


def seal(folder: Path, described: Mapping[str, Any]) -> None:
    """Write ``SHA256SUMS`` and ``manifest.json`` into ``folder``, which holds everything else."""
    files = [asdict(entry) for entry in keys.hash_tree(folder)]
    text = sums(files).encode()
    (folder / SUMS).write_bytes(text)
    own = {"path": SUMS, "size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    manifest = {**described, "files": sorted([*files, own], key=lambda entry: str(entry["path"]))}
    (folder / NAME).write_bytes(dump(manifest | {"digest": digest(manifest)}).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the package in ``folder``, itself intact; says nothing of the other files.

    Raises:
        SourceError: ``folder`` is no package, its manifest was changed, or a newer phipipe made it.
    """
    raw = _raw(folder)
    try:
        manifest = json_files.parse(raw, folder / NAME)
    except SourceError as error:
        raise SourceError(
            f"{error.message}; the package is damaged", hint="build the package again"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("type") != TYPE:
        raise SourceError(
            f"`{folder}` is no phipipe package: `{NAME}` is something else", hint=_HINT
        )
    version = manifest.get("format")
    if type(version) is int and version > FORMAT:
        raise _Newer(
            f"`{folder}` was made by a newer phipipe: its format is {version}, this phipipe "
            f"reads up to {FORMAT}",
            hint="install the newest phipipe",
        )
    if problem := _problem(manifest, raw):
        raise SourceError(
            f"`{folder / NAME}` is damaged: {problem}", hint="build the package again"
        )
    manifest["fidelity"].setdefault("profile", {})  # what the first packages did not have yet
    manifest["fidelity"]["baseline"].setdefault("skip", 0)
    return manifest


_HINT = "packages are folders that `phipipe run RECIPE` writes"


def _raw(folder: Path) -> bytes:
    if not folder.is_dir():
        raise SourceError(f"no package at `{folder}`: there is no such folder", hint=_HINT)
    path = folder / NAME
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise SourceError(
                f"`{path}` is damaged: it is no plain file of a sensible size", hint=_HINT
            )
        return json_files.read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        raise SourceError(
            f"`{folder}` is no phipipe package: it has no `{NAME}`", hint=_HINT
        ) from None
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror}") from None


def _problem(manifest: Manifest, raw: bytes) -> str | None:
    from phipipe import manifest_schema

    if manifest.get("format") != FORMAT or type(manifest["format"]) is not int:
        return "its format is unknown"
    try:
        if manifest.get("digest") != digest(manifest):
            return "its content does not match its own digest"
        if (
            dump(manifest).encode() != raw
        ):  # spaces, doubled keys: nothing may hide in what parsers skip
            return "it is not written as phipipe writes it"
    except (ValueError, RecursionError):
        return "it holds values that phipipe does not write"
    return _bad_entries(manifest.get("files")) or manifest_schema.problem(manifest)


def _bad_entries(entries: object) -> str | None:
    from pydantic import ValidationError

    from phipipe import manifest_schema

    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        return "it lists no files"
    if len(entries) > manifest_schema.MAX_FILES:
        return (
            f"it lists {len(entries)} files, and no package has more than "
            f"{manifest_schema.MAX_FILES}"
        )
    seen: set[str] = set()
    for entry in entries:
        path = entry.get("path")
        if isinstance(path, str) and ((reason := file_names.unsafe(path)) or path == NAME):
            return f"it lists `{json_files.shown(path)}`: {reason or 'it cannot list itself'}"
        try:
            path = manifest_schema.File.model_validate(entry).path
        except ValidationError:
            return "an entry of its file list is malformed"
        if file_names.alike(path) in seen:
            return f"it lists `{path}` twice"
        seen.add(file_names.alike(path))
    if clash := sorted(
        seen & {file_names.alike(folder) for folder in _folders(e["path"] for e in entries)}
    ):
        return f"it lists `{json_files.shown(clash[0])}` as a file and as a folder"
    return None if file_names.alike(SUMS) in seen else f"it does not list `{SUMS}`"


def verify(folder: Path) -> list[Finding]:
    """Everything by which ``folder`` differs from what was packaged; an empty list if it is intact.

    Reads every byte once and follows no link. Nothing is exempt: no hidden file, no ``.git``.

    Raises:
        SourceError: there is no such folder, or a newer phipipe made the package.
    """
    if not folder.is_dir():
        raise SourceError(f"no package at `{folder}`: there is no such folder", hint=_HINT)
    try:
        manifest = read_manifest(folder)
    except _Newer:
        raise
    except SourceError as error:
        return [Finding(NAME, error.message)]
    entries = {str(entry["path"]): entry for entry in manifest["files"]}
    folders = _folders(entries)
    most = len(entries) + len(folders) + MAX_ADDED
    try:
        present = dict(islice(_walk(folder, known=folders), most))
    except OSError as error:
        raise SourceError(f"cannot read `{error.filename}`: {error.strerror}") from None
    if len(present) == most:
        return [
            Finding(".", f"more than {MAX_ADDED} files were added: the package does not list them")
        ]
    misfits = (
        (path, _misfit(status, path in folders, path in entries or path == NAME))
        for path, status in present.items()
    )
    findings = [Finding(_shown(path), message) for path, message in misfits if message]
    findings += [Finding(path, "is missing") for path in entries if path not in present]
    regular = [entries[p] for p, s in present.items() if p in entries and stat.S_ISREG(s.st_mode)]
    with ThreadPoolExecutor(THREADS) as pool:
        findings += [f for f in pool.map(lambda entry: _changed(folder, entry), regular) if f]
    if (
        not any(f.path == SUMS for f in findings)
        and (folder / SUMS).read_bytes() != sums(manifest["files"]).encode()
    ):
        findings.append(Finding(SUMS, f"does not say what `{NAME}` says"))
    return sorted(findings)


def _folders(paths: Iterable[str]) -> frozenset[str]:
    """Every folder that a listed file needs."""
    return frozenset("/".join(p.split("/")[:i]) for p in paths for i in range(1, p.count("/") + 1))


def _walk(
    folder: Path, known: frozenset[str] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Relative path and own status of everything below ``folder``; does not enter folders outside
    ``known``."""
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        with os.scandir(folder / parent) as found:
            for entry in found:
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


def _changed(folder: Path, entry: Mapping[str, Any]) -> Finding | None:
    path = folder / entry["path"]
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return Finding(
                entry["path"], f"was changed: it has {size} bytes instead of {entry['size']}"
            )
        if keys.hash_file(path) != entry["sha256"]:
            return Finding(entry["path"], "was changed: same size, other content")
    except OSError as error:
        return Finding(entry["path"], f"cannot be read: {error.strerror}")
    return None


def _shown(path: str) -> str:
    """A name as it may be printed: anything odd escaped."""
    return path if path.isprintable() else ascii(path)[1:-1]
