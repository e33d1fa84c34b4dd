"""Keys, certificates and hostile signatures, made for a test."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
PRIVATE = serialization.PrivateFormat
PEM = serialization.Encoding.PEM


def key(folder: Path, name: str = "signing", curve: Any = None, passphrase: str = "") -> Path:
    """A private key in ``NAME.key``, and its public one in ``NAME.pub``."""
    made = ec.generate_private_key(curve or CURVES["P-256"])
    return written(folder, name, made, passphrase)


def rsa_key(folder: Path) -> Path:
    return written(folder, "rsa", rsa.generate_private_key(65537, 2048), "")


def written(folder: Path, name: str, made: Any, passphrase: str) -> Path:
    closed = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.key"
    path.write_bytes(made.private_bytes(PEM, PRIVATE.PKCS8, closed))
    public = made.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate with its key, in files."""

    name: str
    key: Any
    certificate: x509.Certificate
    path: Path

    @property
    def key_path(self) -> Path:
        return self.path.with_suffix(".key")


def issue(
    folder: Path,
    name: str,
    by: Issued | None = None,
    *,
    is_ca: bool = False,
    begins: datetime.datetime = NOW - DAY,
    ends: datetime.datetime = NOW + 100 * DAY,
    signs: bool = True,
    key: Any = None,
) -> Issued:
    """A certificate of ``name``; without ``by`` it vouches for itself."""
    own = key or ec.generate_private_key(CURVES["P-256"])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=signs and not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        **dict.fromkeys(
            (
                *("content_commitment", "key_encipherment", "data_encipherment"),
                *("key_agreement", "encipher_only", "decipher_only"),
            ),
            False,
        ),
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(by.key if by else own, hashes.SHA256())
    )
    written(folder, name, own, "")
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(PEM))
    return Issued(name=name, key=own, certificate=made, path=path)


def revocations(folder: Path, by: Issued, *revoked: Issued, until: Any = NOW + DAY) -> Path:
    """The list of certificates that ``by`` has revoked."""
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(by.certificate.subject)
        .last_update(NOW - 2 * DAY)
        .next_update(until)
    )
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number)
        made = made.add_revoked_certificate(entry.revocation_date(NOW - DAY).build())
    path = folder / f"{by.name}.crl"
    path.write_bytes(made.sign(by.key, hashes.SHA256()).public_bytes(PEM))
    return path


def edited(
    path: Path, edit: Callable[[dict[str, Any]], None], inner: bool = False
) -> dict[str, Any]:
    """Change the bundle in ``path`` with ``edit``, or the statement in it."""
    bundle: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if inner:
        envelope = bundle["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        edit(statement)
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    else:
        edit(bundle)
    path.write_text(json.dumps(bundle), "utf-8")
    return bundle
