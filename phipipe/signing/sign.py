"""A package is signed: looked at first, hashed once, its old signature replaced in one step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.package import package
from phipipe.package.manifest_schema import Manifest
from phipipe.signing import bundle, coverage, library
from phipipe.signing.bundle import NAME, Signature, Unsound
from phipipe.signing.credentials import Credentials
from phipipe.signing.verdict import Signer
from phipipe.store import claims, files, free_space, refusals


def sign(folder: Path, credentials: Credentials) -> Signer:
    """Sign the package in ``folder``, which is verified first. A signature that it has is replaced
    once the new one is made; until then it stays.

    Raises:
        SourceError: it is no package, was changed, or cannot be signed.
        StoreError: the signature cannot be written.
    """
    manifest = package.open_(folder)
    return sign_intact(folder, manifest, credentials)


def sign_intact(folder: Path, manifest: Manifest, credentials: Credentials) -> Signer:
    """As ``sign``, of a package whose files are known to be those of its ``manifest``."""
    covered = coverage.digests(folder, manifest)
    made = credentials.sign(covered, manifest.name)
    if not _holds(bundle.parse(made, folder / NAME), covered, credentials):
        raise SourceError("the signature that was made does not hold", hint="sign it again")
    with (
        refusals.guard(folder, remedy=free_space.KEEP_OUT),
        # beside the package: nothing half written may ever lie in it
        claims.claim(folder.parent, f".{folder.name}.") as aside,
    ):
        files.write(aside / NAME, made)
        (aside / NAME).replace(folder / NAME)
        files.flush_folder(folder)
    return credentials.signer


def is_signed(folder: Path, covered: Mapping[str, str], credentials: Credentials) -> bool:
    """Whether the package in ``folder`` has a signature of these files (path → SHA-256) by the same
    signer already."""
    try:
        return bundle.is_there(folder) and _holds(bundle.read(folder), covered, credentials)
    except Unsound:
        return False


def _holds(signature: Signature, covered: Mapping[str, str], credentials: Credentials) -> bool:
    """Whether ``signature`` is one of ``covered`` by ``credentials``."""
    try:
        coverage.check(signature, covered)
        if credentials.public is None:  # a key that was used once: sigstore itself has checked it
            return True
        library.check_key(signature, credentials.public)
    except Unsound:
        return False
    return signature.fingerprint == credentials.signer.fingerprint
