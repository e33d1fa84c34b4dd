"""Files of keys and certificates that a user names: read within bounds, each block for itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files, user_paths

LINE = 64  # characters of base64
MAX_BYTES = 2**20  # a bundle of all public roots has a quarter of it
PUBLIC_OF = "openssl pkey -in KEY -pubout -out KEY.pub"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[\r\n].*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """One public key: its PEM text, as OpenSSL writes it, and its fingerprint.

    The fingerprint is ``sha256:`` and what ``sha256sum`` says of such a file.
    """

    text: bytes
    fingerprint: str

    @classmethod
    def of(cls, text: bytes) -> PublicKey:
        """The key whose PEM text this is."""
        return cls(text=text, fingerprint=f"sha256:{hashlib.sha256(text).hexdigest()}")


def read(path: Path, what: str) -> bytes:
    """The content of a file of PEM blocks.

    Raises:
        SourceError: it is missing, too large, or no plain file; ``what`` is what it should be.
    """
    if odd := user_paths.problem(path, user_paths.Kind.FILE):
        raise SourceError(f"{what} `{user_paths.shown(path)}` {odd}", hint="give another file")
    if not path.exists():
        raise SourceError(f"{what}: there is no file `{path}`", hint="check the path")
    return json_files.read_bytes(path, MAX_BYTES)


def public_keys(path: Path) -> list[PublicKey]:
    """The public keys in ``path``, one at least.

    Raises:
        SourceError: it cannot be read, or holds something else.
    """
    raw = read(path, "the public key")
    kinds = {kind for kind, _ in _blocks(raw)}
    if any(kind.endswith("PRIVATE KEY") for kind in kinds):
        raise SourceError(
            f"`{path}` holds a private key, and its public one is needed here", hint=PUBLIC_OF
        )
    if "CERTIFICATE" in kinds:
        raise SourceError(
            f"`{path}` holds a certificate, no public key",
            hint="give it as --cert, or as `certificate:` in the trust file",
        )
    keys = [_public(block) for kind, block in _blocks(raw) if kind == "PUBLIC KEY"]
    if not keys:
        raise SourceError(f"`{path}` holds no public key in PEM", hint=PUBLIC_OF)
    return keys


def certificates(path: Path) -> bytes:
    """The certificates in ``path``, one at least, as PEM.

    Raises:
        SourceError: it cannot be read, or holds none.
    """
    raw = read(path, "the certificate")
    blocks = [block for kind, block in _blocks(raw) if kind == "CERTIFICATE"]
    if not blocks:
        raise SourceError(
            f"`{path}` holds no certificate in PEM",
            hint="convert it: openssl x509 -in FILE -out FILE.pem",
        )
    return b"\n".join(blocks) + b"\n"


def revocations(path: Path) -> list[bytes]:
    """The lists of revoked certificates in ``path``, one at least, each as PEM.

    Raises:
        SourceError: it cannot be read, or holds none.
    """
    raw = read(path, "the list of revoked certificates")
    blocks = [block for kind, block in _blocks(raw) if kind == "X509 CRL"]
    if not blocks:
        raise SourceError(
            f"`{path}` holds no list of revoked certificates in PEM",
            hint="convert it: openssl crl -in FILE -out FILE.pem",
        )
    return blocks


def _public(block: bytes) -> PublicKey:
    """The key in ``block``, in lines as OpenSSL breaks them, so that it has one fingerprint."""
    first, *inner, last = (line.strip() for line in block.splitlines())
    body = b"".join(inner)
    lines = [body[start : start + LINE] for start in range(0, len(body), LINE)]
    return PublicKey.of(b"\n".join([first, *lines, last, b""]))


def _blocks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    for found in _BLOCK.finditer(raw):
        yield found[1].decode("ascii"), found[0]
