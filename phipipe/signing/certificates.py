"""Whether a certificate may sign today: its time, its use, its way to a root, what was revoked.

The library below looks at the time when a certificate was issued alone. Without a time stamp that
somebody vouches for, nobody knows when a signature was made; so a certificate that has ended, or
was revoked, proves nothing here.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.signing.bundle import NAME, Unsound
from phipipe.signing.library import HINT, now

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from OpenSSL.crypto import X509Store, X509StoreContextError

CURVES = ("secp256r1", "secp384r1", "secp521r1")
# OpenSSL's numbers of what is wrong with a chain, and what that means
_REASONS = {
    2: "nobody vouches for it that the trusted certificates know",
    3: "the list of revoked certificates is not its issuer's",
    9: "a certificate in its chain is not valid yet",
    10: "a certificate in its chain has ended",
    11: "the list of revoked certificates is not valid yet",
    12: "the list of revoked certificates has ended; take a new one",
    18: "it vouches for itself, and is not among the trusted certificates",
    19: "it leads to a root that is not among the trusted certificates",
    20: "nobody vouches for it that the trusted certificates know",
    21: "nobody vouches for it that the trusted certificates know",
    23: "it was revoked",
    32: "a certificate in its chain may not vouch for others",
    79: "a certificate in its chain may not vouch for others",
}


def subject(der: bytes) -> str:
    """Whom a certificate names, as RFC 4514 has it; a stranger's text, fit for a terminal.

    Raises:
        Unsound: it is no certificate.
    """
    return json_files.shown(_loaded(der).subject.rfc4514_string())


def check(
    chain: Sequence[bytes],
    roots: bytes,
    revocations: Sequence[bytes] = (),
    time: datetime.datetime | None = None,
    revoked: Collection[str] = (),
) -> None:
    """See that the first certificate of ``chain`` (DER) may sign at ``time``, which is now unless
    it is given, and leads to ``roots`` (PEM).

    ``revocations`` are lists of revoked certificates (PEM); where there are some, one of them must
    be the list of the signer's issuer, and valid. ``revoked`` are fingerprints of certificates, and
    of keys, none of which may be in the chain.

    Raises:
        Unsound: says what is wrong.
        SourceError: ``roots`` or ``revocations`` hold something else.
    """
    moment = time or now()
    own, *others = (_loaded(der) for der in chain)
    check_own(own, moment)
    store = _store(roots, revocations, moment)
    from OpenSSL import crypto

    above = [crypto.X509.from_cryptography(one) for one in others]
    context = crypto.X509StoreContext(store, crypto.X509.from_cryptography(own), above)
    try:
        verified = [one.to_cryptography() for one in context.get_verified_chain()]
    except crypto.X509StoreContextError as error:
        raise Unsound(
            f"the certificate `{_name(own)}` that signed is not to be trusted: {_reason(error)}",
            hint=HINT,
        ) from None
    for one in verified:
        if found := _fingerprints(one) & set(revoked):
            raise Unsound(f"the certificate `{_name(one)}` was revoked: {found.pop()}", hint=HINT)


def _fingerprints(certificate: Certificate) -> set[str]:
    """Of a certificate, and of the key in it."""
    from cryptography.hazmat.primitives import serialization

    whole = certificate.public_bytes(serialization.Encoding.DER)
    key = certificate.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {f"sha256:{hashlib.sha256(one).hexdigest()}" for one in (whole, key)}


def check_own(certificate: Certificate, time: datetime.datetime) -> None:
    """See that ``certificate`` itself may sign at ``time``.

    Raises:
        Unsound: it is not valid then, has another kind of key, or is for something else.
    """
    name = f"the certificate `{_name(certificate)}`"
    if time > certificate.not_valid_after_utc:
        ended = certificate.not_valid_after_utc.date()
        raise Unsound(
            f"{name} that signed ended on {ended}", hint="sign again with one that is valid"
        )
    if time < certificate.not_valid_before_utc:
        begins = certificate.not_valid_before_utc.date()
        raise Unsound(
            f"{name} that signed is not valid before {begins}", hint="check this machine's clock"
        )
    if _curve(certificate) not in CURVES:
        raise Unsound(
            f"{name} has no key of the kinds that sign packages: EC P-256, P-384, P-521", hint=HINT
        )
    if not _may_sign(certificate):
        raise Unsound(
            f"{name} is not for signing: it needs the key usage `digitalSignature`, or the "
            "extended one `codeSigning`",
            hint=HINT,
        )


def _loaded(der: bytes) -> Certificate:
    from cryptography import x509

    try:
        found = x509.load_der_x509_certificate(der)
        _ = found.subject, found.extensions, found.not_valid_after_utc  # parsed when asked for
        return found
    except ValueError as error:
        words = json_files.shown(str(error))
        raise Unsound(f"`{NAME}` holds a certificate that is none: {words}", hint=HINT) from None


def _name(certificate: Certificate) -> str:
    return json_files.shown(certificate.subject.rfc4514_string())


def _curve(certificate: Certificate) -> str | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else None


def _may_sign(certificate: Certificate) -> bool:
    from cryptography import x509

    for extension in certificate.extensions:
        if isinstance(extension.value, x509.KeyUsage) and extension.value.digital_signature:
            return True
        if isinstance(extension.value, x509.ExtendedKeyUsage):
            return x509.oid.ExtendedKeyUsageOID.CODE_SIGNING in extension.value
    return False


def _store(roots: bytes, revocations: Sequence[bytes], time: datetime.datetime) -> X509Store:
    """The trusted certificates, as OpenSSL takes them."""
    from cryptography import x509
    from OpenSSL import crypto

    store = crypto.X509Store()
    try:
        for root in x509.load_pem_x509_certificates(roots):
            store.add_cert(crypto.X509.from_cryptography(root))
        for text in revocations:
            store.add_crl(x509.load_pem_x509_crl(text))
    except (ValueError, crypto.Error) as error:
        words = json_files.shown(str(error))
        raise SourceError(f"a trusted certificate or a list cannot be read: {words}") from None
    store.set_time(time)
    if revocations:
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK)
    return store


def _reason(error: X509StoreContextError) -> str:
    number = error.errors[0] if error.errors else None
    known = _REASONS.get(number) if isinstance(number, int) else None
    return known or json_files.shown(str(error))
