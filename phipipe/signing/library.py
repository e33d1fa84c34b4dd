"""The border to ``model-signing``, and to the cryptography below it: the only place that imports
them.

What goes in was read and bounded by us; whatever comes out as an exception means that a signature
proves nothing, and is said in one sentence. Keys stay in memory: the library is handed objects that
read like files.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from phipipe.errors import SourceError, ToolchainError
from phipipe.files import json_files
from phipipe.signing.bundle import NAME, Signature, Unsound
from phipipe.signing.pem import PublicKey

if TYPE_CHECKING:
    from model_signing._signing import signing

INSTALL = "pip install 'phipipe[sign]'"
OFFLINE = (
    "check the network, and that the trust configuration is sigstore's; or sign and trust with a "
    "key, which needs no network"
)
HINT = "do not trust it; ask whoever made the package"


@dataclass(frozen=True)
class Held:
    """A file's content that never was in a file of ours: as much of a path as the library asks
    for."""

    content: bytes

    def read_bytes(self) -> bytes:
        return self.content

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.content.decode(encoding)

    def __repr__(self) -> str:
        return "Held(…)"  # it may be a private key

    @property
    def path(self) -> Path:
        """It, for who declares to want a path."""
        return cast(Path, self)


def require() -> None:
    """See that the library is there.

    Raises:
        ToolchainError: it is not; says how to install it.
    """
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401
    except ImportError as error:
        raise ToolchainError(
            f"signatures need the package `model-signing`: {error}", hint=INSTALL
        ) from None
    logging.getLogger("model_signing").addHandler(logging.NullHandler())  # we say what it says


def check_key(signature: Signature, key: PublicKey) -> None:
    """See that ``signature`` was made by ``key``, whatever it came with.

    Raises:
        Unsound: it was not.
        ToolchainError: the library is missing.
    """
    require()
    from model_signing._signing import sign_ec_key, sign_sigstore_pb

    with guarded(f"`{NAME}` was not made by the key {key.fingerprint}"):
        verifier = sign_ec_key.Verifier(Held(key.text).path)
        verifier.verify(sign_sigstore_pb.Signature.read(_file(_by_key(signature, key)).path))


def check_chain(signature: Signature, roots: bytes) -> None:
    """See that ``signature`` was made by the certificate that came with it, and that this one leads
    to ``roots`` (PEM) by what was valid when it was issued.

    Raises:
        Unsound: it was not, or does not.
        ToolchainError: the library is missing.
    """
    require()
    from model_signing._signing import sign_certificate, sign_sigstore_pb

    with guarded(f"`{NAME}` was not made by the certificate that came with it"):
        verifier = sign_certificate.Verifier([Held(roots).path])
        verifier.verify(sign_sigstore_pb.Signature.read(_file(signature.content).path))


def check_identity(signature: Signature, identity: str, issuer: str, trust: Path | None) -> None:
    """See that ``signature`` was made through sigstore by ``identity``, which ``issuer`` vouched
    for.

    ``trust`` is a file with a sigstore client's trust configuration; without it the public
    instance's is asked for over the network.

    Raises:
        Unsound: it was not, or that cannot be known now.
        ToolchainError: the library is missing.
    """
    require()
    from model_signing._signing import sign_sigstore

    held = None if trust is None else Held(json_files.read_bytes(trust)).path
    with guarded("sigstore's roots of trust cannot be had", hint=OFFLINE):
        verifier = sign_sigstore.Verifier(identity=identity, oidc_issuer=issuer, trust_config=held)
    with guarded(f"`{NAME}` was not made by `{json_files.shown(identity)}` through sigstore"):
        verifier.verify(sign_sigstore.Signature.read(_file(signature.content).path))


def sign_by_key(files: Mapping[str, str], name: str, key: Held) -> bytes:
    """The signature of ``files`` (path → SHA-256) of the package ``name`` by a private ``key``
    (PEM).

    Raises:
        SourceError: the library refuses.
    """
    from model_signing._signing import sign_ec_key

    return _signed(lambda: sign_ec_key.Signer(key.path), files, name)


def sign_by_certificate(
    files: Mapping[str, str], name: str, key: Held, certificate: Held, chain: Held
) -> bytes:
    """As ``sign_by_key``, with the ``certificate`` of the key and those above it (PEM)."""
    from model_signing._signing import sign_certificate

    above = chain if chain.content else certificate  # the library takes no empty chain
    made = _signed(
        lambda: sign_certificate.Signer(key.path, certificate.path, [above.path]), files, name
    )
    if chain.content:
        return made
    bundle = json.loads(made)
    del bundle["verificationMaterial"]["x509CertificateChain"]["certificates"][1:]
    return json.dumps(bundle, separators=(",", ":")).encode()


def sign_by_identity(files: Mapping[str, str], name: str) -> bytes:
    """As ``sign_by_key``, by whom sigstore finds in the environment, else in the browser.

    Raises:
        SourceError: sigstore cannot be reached, or vouches for nobody.
        ToolchainError: the library is missing.
    """
    require()
    from model_signing._signing import sign_sigstore

    return _signed(lambda: sign_sigstore.Signer(use_ambient_credentials=True), files, name)


def _signed(signer: Callable[[], signing.Signer], files: Mapping[str, str], name: str) -> bytes:
    from model_signing import manifest
    from model_signing._hashing import hashing
    from model_signing._signing import signing

    arguments = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        "ignore_paths": [NAME],
    }
    written = Written()
    with guarded("it cannot be signed", hint=OFFLINE, error=SourceError):
        kind = manifest.SerializationType.from_args(arguments)
        items = [
            kind.new_item(path, hashing.Digest("sha256", bytes.fromhex(digest)))
            for path, digest in files.items()
        ]
        payload = signing.Payload(manifest.Manifest(name, items, kind))
        signer().sign(payload).write(cast(Path, written))
    return written.content


class Written:
    """What the library writes, in memory."""

    content = b""

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        self.content = text.encode(encoding)
        return len(text)


def _file(content: Mapping[str, object]) -> Held:
    return Held(json.dumps(content).encode())


def _by_key(signature: Signature, key: PublicKey) -> dict[str, object]:
    """The bundle as one by ``key``: whether that made it, the signature decides alone.

    What it says itself of its key is left out. Older signers left the hint out; then the library
    prints advice.
    """
    from cryptography.hazmat.primitives import serialization

    spelled = serialization.load_pem_public_key(key.text).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    hint = PublicKey.of(spelled).fingerprint.removeprefix("sha256:")
    material = {"publicKey": {"hint": hint}, "tlogEntries": []}
    return {**signature.content, "verificationMaterial": material}


@contextlib.contextmanager
def guarded(message: str, hint: str = HINT, error: type[SourceError] = Unsound) -> Iterator[None]:
    """Whatever libraries raise or print within this is ``error``, in one sentence; what is ours
    passes."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (KeyboardInterrupt, SystemExit, SourceError):
        raise
    except BaseException as cause:  # noqa: BLE001 (the library's parsers raise anything, panics too)
        _refuse(message, hint, error, cause)


def _refuse(message: str, hint: str, error: type[SourceError], cause: BaseException) -> NoReturn:
    said = json_files.shown(str(cause).strip()) or type(cause).__name__
    raise error(f"{message}: {said}", hint=hint) from None


def now() -> datetime.datetime:
    """The time, with its zone."""
    return datetime.datetime.now(datetime.UTC)
