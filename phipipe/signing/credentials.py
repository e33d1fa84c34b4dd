"""What signs: a private key, perhaps with its certificate, or an identity through sigstore.

A key is read, tried and kept in memory. Neither it nor its passphrase is ever written, printed, or
handed to a child process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from phipipe.errors import SourceError
from phipipe.signing import certificates, library, pem
from phipipe.signing.library import Held
from phipipe.signing.pem import PublicKey
from phipipe.signing.verdict import Signer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

PASSPHRASE = "SIGNING_KEY_PASSPHRASE"  # the variable that holds a key's passphrase
NEW_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out signing.key"

Ask = Callable[[], str | None]
"""Gives the passphrase of a key that has one; None where nobody knows it."""


class Credentials(Protocol):
    """What can sign."""

    @property
    def signer(self) -> Signer:
        """Who signs with it."""
        ...

    @property
    def public(self) -> PublicKey | None:
        """The key by which its signatures are checked; None where each has a key of its own."""
        ...

    def sign(self, files: Mapping[str, str], name: str) -> bytes:
        """The signature of ``files`` (path → SHA-256) of the package ``name``.

        Raises:
            SourceError: it does not sign.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ByKey:
    """A private key."""

    held: Held = field(repr=False)
    public: PublicKey
    signer: Signer

    def sign(self, files: Mapping[str, str], name: str) -> bytes:
        """As ``Credentials`` says."""
        return library.sign_by_key(files, name, self.held)


@dataclass(frozen=True, kw_only=True)
class ByCertificate:
    """A private key with its certificate, and those above it."""

    held: Held = field(repr=False)
    public: PublicKey
    certificate: Held
    chain: Held
    signer: Signer

    def sign(self, files: Mapping[str, str], name: str) -> bytes:
        """As ``Credentials`` says."""
        return library.sign_by_certificate(files, name, self.held, self.certificate, self.chain)


@dataclass(frozen=True, kw_only=True)
class BySigstore:
    """Whoever sigstore finds: the workload that this is, else the user, in a browser."""

    public: None = None

    @property
    def signer(self) -> Signer:
        """Somebody, whom sigstore will name."""
        return Signer(kind="sigstore")

    def sign(self, files: Mapping[str, str], name: str) -> bytes:
        """As ``Credentials`` says. Needs the network."""
        return library.sign_by_identity(files, name)


def from_file(
    key: Path, ask: Ask, certificate: Path | None = None, chain: Sequence[Path] = ()
) -> Credentials:
    """The private key in the file ``key`` (PEM), with its ``certificate`` and the ``chain`` above.

    Raises:
        SourceError: a file cannot be read or is something else, the passphrase is missing or wrong,
            or the certificate is another key's, or may not sign today.
        ToolchainError: the library for signatures is missing.
    """
    return from_pem(pem.read(key, "the private key"), f"`{key}`", ask, certificate, chain)


def from_pem(
    text: bytes,
    name: str,
    ask: Ask,
    certificate: Path | None = None,
    chain: Sequence[Path] = (),
) -> Credentials:
    """As ``from_file``, of the text of a key; messages call it ``name``."""
    library.require()
    private = _private(text, name, ask)
    held, public = _spelled(private)
    if certificate is None:
        if chain:
            raise SourceError("a chain of certificates needs the certificate of the key, too")
        signer = Signer(kind="key", fingerprint=public.fingerprint)
        return ByKey(held=held, public=public, signer=signer)
    own = _certificate(certificate, private, name)
    return ByCertificate(
        held=held,
        public=public,
        certificate=Held(pem.certificates(certificate)),
        chain=Held(b"".join(pem.certificates(one) for one in chain)),
        signer=own,
    )


def _private(text: bytes, name: str, ask: Ask) -> EllipticCurvePrivateKey:
    """The key in ``text``, if it is one that packages are signed with."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        try:
            found = serialization.load_pem_private_key(text, None)
        except TypeError:  # it has a passphrase
            found = _opened(text, name, ask)
    except (ValueError, UnsupportedAlgorithm):  # whose words could repeat the key's
        raise SourceError(f"{name} holds no private key in PEM", hint=NEW_KEY) from None
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise SourceError(
            f"{name} is no EC key: packages are signed with P-256, P-384 or P-521", hint=NEW_KEY
        )
    if found.curve.name not in certificates.CURVES:
        raise SourceError(
            f"{name} is an EC key on {found.curve.name}: packages are signed with P-256, P-384 or "
            "P-521",
            hint=NEW_KEY,
        )
    return found


def _opened(text: bytes, name: str, ask: Ask) -> PrivateKeyTypes:
    from cryptography.hazmat.primitives import serialization

    passphrase = ask()
    if passphrase is None:
        raise SourceError(
            f"{name} has a passphrase, and nobody gave it",
            hint=f"set the environment variable {PASSPHRASE}, or call it on a terminal",
        )
    try:
        return serialization.load_pem_private_key(text, passphrase.encode())
    except ValueError:
        raise SourceError(
            f"{name} does not open with this passphrase", hint=f"check {PASSPHRASE}"
        ) from None


def _spelled(private: EllipticCurvePrivateKey) -> tuple[Held, PublicKey]:
    """The key for the library, without a passphrase, in memory; and its public one."""
    from cryptography.hazmat.primitives import serialization

    plain = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Held(plain), PublicKey.of(public)


def _certificate(path: Path, private: EllipticCurvePrivateKey, name: str) -> Signer:
    """Whom the certificate in ``path`` names, if it is the key's and may sign today."""
    from cryptography.hazmat.primitives import serialization

    found = _loaded(path)
    if found.public_key() != private.public_key():
        raise SourceError(
            f"`{path}` is not the certificate of {name}: they hold different keys",
            hint="name the certificate that was issued for this key",
        )
    try:
        certificates.check_own(found, library.now())
    except SourceError as error:
        raise SourceError(f"`{path}` cannot sign: {error.message}", hint=error.hint) from None
    der = found.public_bytes(serialization.Encoding.DER)
    return Signer(
        kind="certificate",
        fingerprint=f"sha256:{hashlib.sha256(der).hexdigest()}",
        subject=certificates.subject(der),
    )


def _loaded(path: Path) -> Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem.certificates(path))[0]
    except ValueError:
        raise SourceError(f"`{path}` holds no certificate that makes sense") from None
