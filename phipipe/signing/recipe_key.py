"""What a recipe's `package.sign` names: looked at before hours of work, used when a package is
written.

The store keeps packages unsigned: ECDSA signatures differ each time, and whose key it was is
nothing that a result depends on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import user_paths
from phipipe.package import package
from phipipe.recipe.build import Build
from phipipe.recipe.packaging import Signing
from phipipe.signing import credentials as creds
from phipipe.signing import pem, sign
from phipipe.signing.credentials import PASSPHRASE, Credentials

PEM = "-----BEGIN "


class Finish:
    """Signs packages of one build as its recipe wants it."""

    def __init__(self, build: Build) -> None:
        """Of a ``build`` whose recipe has `package.sign`."""
        self._build = build

    def __call__(self, folder: Path, fresh: bool, digests: Mapping[str, str]) -> None:
        """Have the package in ``folder`` signed; one that is signed so already stays as it is.

        Args:
            folder: the package.
            fresh: whether its files were checked and copied just now.
            digests: path → SHA-256 of its files.

        Raises:
            SourceError: the key cannot be had, or the package was changed.
            StoreError: the signature cannot be written.
        """
        own = of_build(self._build)
        if own is None or sign.is_signed(folder, digests, own):
            return
        if fresh:
            sign.sign_intact(folder, package.read_manifest(folder), own)
        else:
            sign.sign(folder, own)


def of_build(build: Build) -> Credentials | None:
    """What signs the package of ``build``; None where its recipe wants none.

    Raises:
        SourceError: it cannot be had; points at the place in the recipe.
        ToolchainError: the library for signatures is missing.
    """
    wanted = build.recipe.package.sign
    if wanted is None:
        return None
    try:
        return _credentials(wanted, build.folder)
    except SourceError as error:
        at = ("package", "sign")
        located = build.locate([(*at, "key", "env"), (*at, "key", "file"), at], error.message)
        raise SourceError(located.message, hint=error.hint, problems=located.problems) from None


def missing(builds: Sequence[Build]) -> SourceError | None:
    """Why the package of one of ``builds`` could not be signed; None if all could."""
    for build in builds:
        try:
            of_build(build)
        except SourceError as error:
            return error
    return None


def _credentials(wanted: Signing, folder: Path) -> Credentials:
    text, name = _key(wanted, folder)
    certificate = user_paths.inside(folder, wanted.certificate) if wanted.certificate else None
    chain = [user_paths.inside(folder, one) for one in wanted.chain]
    return creds.from_pem(text, name, lambda: os.environ.get(PASSPHRASE), certificate, chain)


def _key(wanted: Signing, folder: Path) -> tuple[bytes, str]:
    """The key's text, and how messages call it."""
    variable = wanted.key.env
    if variable is None:
        path = user_paths.inside(folder, wanted.key.file or "")
        return pem.read(path, "the key that signs packages"), f"`{wanted.key.file}`"
    value = os.environ.get(variable, "")
    name = f"the key in {variable}"
    if not value:
        raise SourceError(
            f"the package is to be signed by the key in {variable}, which is not set",
            hint=f"set it to a private key in PEM, or to the path of its file: "
            f"export {variable}=signing.key",
        )
    if value.lstrip().startswith(PEM):
        return value.encode(), name
    path = user_paths.inside(Path.cwd(), value)
    if not path.is_file():  # the value may be a key that lost its lines: it is never repeated
        raise SourceError(
            f"{name} is neither a private key in PEM nor the path of a file",
            hint=f"{creds.NEW_KEY}; export {variable}=signing.key",
        )
    return pem.read(path, name), name
