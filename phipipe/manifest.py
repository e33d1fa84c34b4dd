"""The list that makes a package a closed world: what is in it, and whether it still is exactly that.

``manifest.json`` names every other file with its size and SHA-256; its own ``digest`` covers the rest of
itself. ``SHA256SUMS`` says the same for people without phipipe. Whoever rewrites all three consistently is
not found out: that takes a signature, which lies apart from the payload.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phipipe import keys
from phipipe.errors import SourceError

NAME = "manifest.json"
SUMS = "SHA256SUMS"
TYPE = "phipipe-package"
FORMAT = 1
MAX_BYTES = 64 * 2**20
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
    return "".join(f"{e['sha256']}  {e['path']}\n" for e in entries if e["path"] not in (NAME, SUMS))


def seal(folder: Path, described: Mapping[str, Any]) -> None:
    """Write ``SHA256SUMS`` and ``manifest.json`` into ``folder``, which holds everything else."""
    files = [asdict(entry) for entry in keys.hash_tree(folder)]
    text = sums(files).encode()
    (folder / SUMS).write_bytes(text)
    own = {"path": SUMS, "size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    manifest = {**described, "files": sorted([*files, own], key=lambda entry: str(entry["path"]))}
    (folder / NAME).write_bytes(dump(manifest | {"digest": digest(manifest)}).encode())


def unsafe(path: str) -> str | None:
    """Why ``path`` may not stand in a package, or None: it must be a plain relative path on every system."""
    parts = path.split("/")
    if not path.isprintable() or any(c in path for c in '\\:*?"<>|'):
        return "it has characters that some systems do not allow"
    if any(part in ("", ".", "..") for part in parts):
        return "it is not a plain relative path"
    if any(part != part.strip() or part.endswith(".") for part in parts):
        return "some systems drop its trailing dots or spaces"
    return None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the package in ``folder``, itself intact; says nothing of the other files.

    Raises:
        SourceError: ``folder`` is no package, its manifest was changed, or a newer phipipe made it.
    """
    text = _text(folder)
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        raise SourceError(
            f"`{folder / NAME}` is damaged: it is not valid JSON", hint="build the package again"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("type") != TYPE:
        raise SourceError(f"`{folder}` is no phipipe package: `{NAME}` is something else", hint=_HINT)
    version = manifest.get("format")
    if type(version) is int and version > FORMAT:
        raise _Newer(
            f"`{folder}` was made by a newer phipipe: its format is {version}, this phipipe reads up to {FORMAT}",
            hint="install the newest phipipe",
        )
    if problem := _problem(manifest, text):
        raise SourceError(f"`{folder / NAME}` is damaged: {problem}", hint="build the package again")
    return manifest


_HINT = "packages are folders that `phipipe run RECIPE` writes"


def _text(folder: Path) -> str:
    if not folder.is_dir():
        raise SourceError(f"no package at `{folder}`: there is no such folder", hint=_HINT)
    path = folder / NAME
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise SourceError(f"`{path}` is damaged: it is no plain file of a sensible size", hint=_HINT)
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise SourceError(f"`{folder}` is no phipipe package: it has no `{NAME}`", hint=_HINT) from None
    except UnicodeDecodeError:
        raise SourceError(f"`{path}` is damaged: it is not UTF-8", hint="build the package again") from None
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror}") from None


def _problem(manifest: Manifest, text: str) -> str | None:
    if manifest.get("format") != FORMAT or type(manifest["format"]) is not int:
        return "its format is unknown"
    try:
        if manifest.get("digest") != digest(manifest):
            return "its content does not match its own digest"
        if dump(manifest) != text:  # spaces, doubled keys: nothing may hide in what parsers skip
            return "it is not written as phipipe writes it"
    except (ValueError, RecursionError):
        return "it holds values that phipipe does not write"
    return _bad_entries(manifest.get("files"))


def _bad_entries(entries: object) -> str | None:
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        return "it lists no files"
    seen: set[str] = set()
    for entry in entries:
        path, size, value = entry.get("path"), entry.get("size"), entry.get("sha256")
        if not isinstance(path, str) or type(size) is not int or not re.fullmatch("[0-9a-f]{64}", str(value)):
            return "an entry of its file list is malformed"
        if (reason := unsafe(path)) or path == NAME:
            return f"it lists {path!a}: {reason or 'it cannot list itself'}"
        if path.casefold() in seen:
            return f"it lists `{path}` twice"
        seen.add(path.casefold())
    return None if SUMS.casefold() in seen else f"it does not list `{SUMS}`"


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
    try:
        present = dict(_walk(folder, known=folders))
    except OSError as error:
        raise SourceError(f"cannot read `{error.filename}`: {error.strerror}") from None
    misfits = (
        (path, _misfit(status, path in folders, path in entries or path == NAME)) for path, status in present.items()
    )
    findings = [Finding(_shown(path), message) for path, message in misfits if message]
    findings += [Finding(path, "is missing") for path in entries if path not in present]
    regular = [entries[p] for p, s in present.items() if p in entries and stat.S_ISREG(s.st_mode)]
    with ThreadPoolExecutor(THREADS) as pool:
        findings += [f for f in pool.map(lambda entry: _changed(folder, entry), regular) if f]
    if not any(f.path == SUMS for f in findings) and (folder / SUMS).read_bytes() != sums(manifest["files"]).encode():
        findings.append(Finding(SUMS, f"does not say what `{NAME}` says"))
    return sorted(findings)


def _folders(paths: Iterable[str]) -> frozenset[str]:
    """Every folder that a listed file needs."""
    return frozenset("/".join(p.split("/")[:i]) for p in paths for i in range(1, p.count("/") + 1))


def _walk(folder: Path, known: frozenset[str] | None = None) -> Iterator[tuple[str, os.stat_result]]:
    """Relative path and own status of everything below ``folder``; does not enter folders outside ``known``."""
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
            return Finding(entry["path"], f"was changed: it has {size} bytes instead of {entry['size']}")
        if keys.hash_file(path) != entry["sha256"]:
            return Finding(entry["path"], "was changed: same size, other content")
    except OSError as error:
        return Finding(entry["path"], f"cannot be read: {error.strerror}")
    return None


def _shown(path: str) -> str:
    """A name as it may be printed: anything odd escaped."""
    return path if path.isprintable() else ascii(path)[1:-1]
