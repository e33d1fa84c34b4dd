"""Who made a package: signing one, and asking whose signature it has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phipipe.api import workplace
from phipipe.api.workplace import UserPath, path_of, warned
from phipipe.errors import RecipeError, SourceError
from phipipe.files.user_paths import Kind
from phipipe.package.manifest import Finding
from phipipe.settings import Settings
from phipipe.signing import credentials, demands, opening, trust_file
from phipipe.signing import sign as signing
from phipipe.signing.bundle import NAME
from phipipe.signing.demands import Anchor, Certificates, Demand, Identity, Keys, Same
from phipipe.signing.verdict import Signer


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose signature a package must have: exactly one of ``key``, ``certificate``, ``identity``.

    Attributes:
        key: a file with public keys (PEM), any of which may have signed.
        certificate: a file with certificates (PEM) that vouch for the signer's, or several files.
        identity: who signed through sigstore; needs ``issuer``, who vouches for it.
        issuer: the address of that.
        sigstore_roots: a sigstore client's trust configuration; without it the network is asked.
        policy: "enforce", or "warn" for a warning alone.
    """

    key: UserPath | None = None
    certificate: UserPath | Sequence[UserPath] | None = None
    identity: str | None = None
    issuer: str | None = None
    sigstore_roots: UserPath | None = None
    policy: str = "enforce"


def demanded(trust: Trust, source: str = "this call") -> Same:
    """``trust``, for the checks; ``source`` is who asks, in words.

    Raises:
        RecipeError: not exactly one is given, or the policy is none.
        SourceError: a path cannot be a file.
    """
    given = [trust.key, trust.certificate, trust.identity]
    if sum(one is not None for one in given) != 1 or bool(trust.identity) != bool(trust.issuer):
        raise RecipeError(
            "trust needs exactly one of a key, a certificate, or an identity with its issuer"
        )
    policy = demands.checked(trust.policy)
    return Same(Demand(policy=policy, anchor=_anchor(trust), source=source))


def _anchor(trust: Trust) -> Anchor:
    if trust.key is not None:
        return Keys(file=_file(trust.key, "the public key"))
    if trust.certificate is not None:
        given = trust.certificate
        every = (given,) if isinstance(given, str | Path) else given
        return Certificates(files=[_file(one, "the certificate") for one in every])
    roots = trust.sigstore_roots
    return Identity(
        name=str(trust.identity),
        issuer=str(trust.issuer),
        roots=None if roots is None else _file(roots, "the trust configuration"),
    )


def verify(path: UserPath, *, trust: Trust | UserPath | None = None) -> list[Finding]:
    """Everything by which the folder ``path`` differs from what was packaged, or that phipipe
    never packages, or why its signature is not to be trusted; often nothing.

    Nothing in it is run. Each finding has ``path`` and ``message``.

    Args:
        path: the package.
        trust: whose signature it must have, or the path of a trust file; without it what the trust
            file of your settings says, and where there is none, nothing is asked.

    Raises:
        RecipeError: ``trust`` makes no sense.
        SourceError: there is no such folder, a newer phipipe made the package, or a key or
            certificate cannot be used.
        ToolchainError: there is a signature to check, and phipipe[sign] is not installed.
    """
    findings, verdict = opening.examine(workplace.package_path(path), _demanded(trust))
    if verdict is None:
        return findings
    if verdict.error:
        return [Finding(NAME, verdict.message)]
    if verdict.warning:
        warned(verdict.warning)
    return []


def sign(
    path: UserPath,
    *,
    key: UserPath | None = None,
    certificate: UserPath | None = None,
    chain: Sequence[UserPath] = (),
    passphrase: str | None = None,
    sigstore: bool = False,
) -> Signer:
    """Sign the package in the folder ``path``, which is verified first; an older signature is
    replaced.

    Args:
        path: the package.
        key: a file with a private key (PEM): EC P-256, P-384 or P-521.
        certificate: a file with the key's certificate (PEM), to sign as whom it names.
        chain: files with the certificates (PEM) above that.
        passphrase: the key's; without it the environment variable SIGNING_KEY_PASSPHRASE.
        sigstore: sign by an identity instead of a key; needs the network.

    Returns:
        Who signed: ``kind``, ``fingerprint``, ``subject``.

    Raises:
        RecipeError: there is neither a key nor ``sigstore``, or both.
        SourceError: the package was changed, or the key or certificate cannot be used.
        StoreError: the signature cannot be written.
        ToolchainError: phipipe[sign] is not installed.
    """
    if (key is None) != sigstore:
        raise RecipeError("a signature is made by a key or through sigstore: give one of them")
    if sigstore and (certificate is not None or chain):
        raise RecipeError("a certificate needs the `key` that it was issued for")
    known = os.environ.get(credentials.PASSPHRASE) if passphrase is None else passphrase
    own = credentials.BySigstore() if key is None else _own(key, known, certificate, chain)
    return signing.sign(workplace.package_path(path), own)


def _own(
    key: UserPath, passphrase: str | None, certificate: UserPath | None, chain: Sequence[UserPath]
) -> credentials.Credentials:
    return credentials.from_file(
        _file(key, "the private key"),
        lambda: passphrase,
        None if certificate is None else _file(certificate, "the certificate"),
        [_file(one, "a certificate of the chain") for one in chain],
    )


def _demanded(trust: Trust | UserPath | None) -> demands.Trust | None:
    if trust is None:
        return trust_file.of_user(Settings.read().trust)
    if isinstance(trust, Trust):
        return demanded(trust)
    return trust_file.load(path_of(trust, Kind.FILE, "the trust file"))


def _file(path: UserPath, what: str) -> Path:
    return path_of(path, Kind.FILE, what, SourceError)
