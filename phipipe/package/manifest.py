"""The list that makes a package a closed world: what is in it, and whether it still is exactly
that.

``manifest.json`` names every other file with its size and SHA-256; its own ``digest`` covers the
rest of itself. ``SHA256SUMS`` says the same for people without phipipe. Whoever rewrites all three
consistently is not found out: that takes a signature, which lies apart from the payload.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from phipipe.errors import SourceError
from phipipe.evaluate import papers
from phipipe.evaluate.reports import dump
from phipipe.files import file_names, json_files
from phipipe.package import manifest_schema
from phipipe.package.manifest_schema import File, Malformed, Manifest
from phipipe.steps import Json
from phipipe.store import keys
from phipipe.store.keys import FileEntry

NAME, SUMS = papers.MANIFEST, papers.SUMS
TYPE = "phipipe-package"
FORMAT = 1
HINT = "packages are folders that `phipipe run RECIPE` writes"
MAX_BYTES = 8 * 2**20  # the longest that phipipe has made has 0.2


class Newer(SourceError):
    """The package was made by a phipipe that knows more than this one."""


@dataclass(frozen=True, order=True)
class Finding:
    """One way in which a folder is not the package it claims to be."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def digest(manifest: Mapping[str, Json]) -> str:
    """SHA-256 over everything in the manifest but ``digest`` itself."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(dump(rest).encode()).hexdigest()


def sums(entries: Iterable[FileEntry | File]) -> str:
    """The text of ``SHA256SUMS``, for ``sha256sum -c``."""
    return "".join(
        f"{entry.sha256}  {entry.path}\n" for entry in entries if entry.path not in (NAME, SUMS)
    )


def seal(
    folder: Path, described: Mapping[str, Json], hashed: Iterable[FileEntry] | None = None
) -> None:
    """Write ``SHA256SUMS`` and ``manifest.json`` into ``folder``, which holds everything else:
    ``hashed``, by path, where somebody has done that already."""
    files = list(keys.hash_tree(folder) if hashed is None else hashed)
    text = sums(files).encode()
    (folder / SUMS).write_bytes(text)
    own = FileEntry(SUMS, len(text), hashlib.sha256(text).hexdigest())
    listed = [asdict(entry) for entry in sorted([*files, own], key=lambda entry: entry.path)]
    manifest = {**described, "files": listed}
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
            f"`{folder}` is no phipipe package: `{NAME}` is something else", hint=HINT
        )
    version = manifest.get("format")
    if type(version) is int and version > FORMAT:
        raise Newer(
            f"`{folder}` was made by a newer phipipe: its format is {version}, this phipipe "
            f"reads up to {FORMAT}",
            hint="install the newest phipipe",
        )
    try:
        _check_spelling(manifest, raw)
        _check_files(manifest.get("files"))
        return manifest_schema.parse(manifest)
    except Malformed as error:
        raise SourceError(
            f"`{folder / NAME}` is damaged: {error}", hint="build the package again"
        ) from None


def _raw(folder: Path) -> bytes:
    if not folder.is_dir():
        raise SourceError(f"no package at `{folder}`: there is no such folder", hint=HINT)
    path = folder / NAME
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise SourceError(
                f"`{path}` is damaged: it is no plain file of a sensible size", hint=HINT
            )
        return json_files.read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        raise SourceError(
            f"`{folder}` is no phipipe package: it has no `{NAME}`", hint=HINT
        ) from None
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror}") from None


def _check_spelling(manifest: Mapping[str, Json], raw: bytes) -> None:
    if manifest.get("format") != FORMAT or type(manifest["format"]) is not int:
        raise Malformed("its format is unknown")
    try:
        if manifest.get("digest") != digest(manifest):
            raise Malformed("its content does not match its own digest")
        # spaces, doubled keys: nothing may hide in what parsers skip
        if dump(manifest).encode() != raw:
            raise Malformed("it is not written as phipipe writes it")
    except Malformed:
        raise
    except (ValueError, RecursionError):
        raise Malformed("it holds values that phipipe does not write") from None


def _check_files(entries: object) -> None:
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise Malformed("it lists no files")
    if len(entries) > manifest_schema.MAX_FILES:
        raise Malformed(
            f"it lists {len(entries)} files, and no package has more than "
            f"{manifest_schema.MAX_FILES}"
        )
    paths: set[str] = set()
    for entry in entries:
        path = _path_of(entry)
        if file_names.alike(path) in paths:
            raise Malformed(f"it lists `{path}` twice")
        paths.add(file_names.alike(path))
    folders = {file_names.alike(folder) for folder in folders_of(e["path"] for e in entries)}
    if clash := sorted(paths & folders):
        raise Malformed(f"it lists `{json_files.shown(clash[0])}` as a file and as a folder")
    if file_names.alike(SUMS) not in paths:
        raise Malformed(f"it does not list `{SUMS}`")


def _path_of(entry: Mapping[str, Json]) -> str:
    """The path in an entry of the file list, which may stand there."""
    path = entry.get("path")
    if isinstance(path, str) and (reason := file_names.unsafe(path) or _unlisted(path)):
        raise Malformed(f"it lists `{json_files.shown(path)}`: {reason}")
    try:
        return File.model_validate(entry).path
    except ValidationError:
        raise Malformed("an entry of its file list is malformed") from None


def _unlisted(path: str) -> str:
    """Why no manifest lists ``path``; empty where one may."""
    if path == NAME:
        return "it cannot list itself"
    return "that lies beside the manifest" if path in papers.ATTACHED else ""


def folders_of(paths: Iterable[str]) -> frozenset[str]:
    """Every folder that a file of ``paths`` needs."""
    return frozenset("/".join(p.split("/")[:i]) for p in paths for i in range(1, p.count("/") + 1))
