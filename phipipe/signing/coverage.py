"""Whether a signature is about this very package: every file of it, and no other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from phipipe.evaluate import papers
from phipipe.files import json_files
from phipipe.package.closed_world import MAX_ATTACHED_BYTES
from phipipe.package.manifest_schema import Manifest
from phipipe.signing.bundle import NAME, Signature, Unsound

OTHER = "look for the signature that belongs to it, or sign it again"


def digests(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Path → SHA-256 of all that a signature of the package in ``folder`` covers: everything but
    itself.

    The files that ``manifest`` lists are taken at its word: whoever asks has just compared them
    with it. No model is hashed a second time.

    Raises:
        SourceError: what lies beside the manifest cannot be read, or is too large.
    """
    known = {entry.path: entry.sha256 for entry in manifest.files}
    beside = (papers.MANIFEST, *(name for name in papers.ATTACHED if name != NAME))
    return known | {
        name: hashlib.sha256(json_files.read_bytes(folder / name, MAX_ATTACHED_BYTES)).hexdigest()
        for name in beside
        if (folder / name).exists()
    }


def check(signature: Signature, files: Mapping[str, str]) -> None:
    """Refuse a ``signature`` that is not about ``files`` (path → SHA-256).

    Raises:
        Unsound: says which file it does not cover, or that it is another package's.
    """
    signed = signature.files
    if papers.MANIFEST not in signed:
        raise Unsound(f"`{NAME}` does not cover `{papers.MANIFEST}`", hint=OTHER)
    if signed[papers.MANIFEST] != files[papers.MANIFEST]:
        raise Unsound(
            f"`{NAME}` is the signature of another package, or of this one before it was changed: "
            f"the `{papers.MANIFEST}` that was signed is not the one here",
            hint=OTHER,
        )
    for path in sorted({*signed, *files}):
        if path not in files:
            raise Unsound(f"`{_shown(path)}` was signed, and is missing", hint=OTHER)
        if path not in signed:
            raise Unsound(
                f"`{_shown(path)}` is not covered by the signature: it came later, or was left out",
                hint=OTHER,
            )
        if signed[path] != files[path]:
            raise Unsound(f"`{_shown(path)}` was changed after it was signed", hint=OTHER)


def _shown(path: str) -> str:
    return json_files.shown(path)
