"""What a package's signature is worth to who asks: trusted, refused, not asked for, not there."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.package.manifest_schema import Manifest
from phipipe.signing import bundle, certificates, coverage, library, pem
from phipipe.signing.bundle import Kind, Signature, Unsound
from phipipe.signing.demands import Certificates, Demand, Identity, Keys, Policy

State = Literal["unsigned", "unasked", "trusted", "refused"]


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signed: a key, a certificate or an identity.

    Attributes:
        kind: which of these.
        fingerprint: ``sha256:`` and hex, of the key's PEM text or of the certificate.
        subject: whom the certificate names, or the identity.
        issuer: who vouches for the identity.
    """

    kind: Kind
    fingerprint: str | None = None
    subject: str | None = None
    issuer: str | None = None

    def __str__(self) -> str:
        if self.kind == "sigstore":
            return f"`{self.subject}` through sigstore" if self.subject else "somebody's identity"
        named = f" `{self.subject}`" if self.subject else ""
        print_ = f" {self.fingerprint}" if self.fingerprint else " that it does not name"
        return f"{self.kind}{named}{print_}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the signature of a package is worth.

    Attributes:
        package: its folder.
        state: `unsigned`, `unasked` (signed, but nobody said whom to trust), `trusted`, `refused`.
        policy: what the user asked for; `off` where nothing was asked.
        signer: whose signature it is; not proven unless the state is `trusted`. None where there
            is none, or it cannot be read.
        message: all that in words that follow the package's name.
        hint: what to do about it.
    """

    package: Path
    state: State
    policy: Policy
    signer: Signer | None
    message: str
    hint: str | None = None

    @property
    def error(self) -> SourceError | None:
        """Why the package must not be opened; None where it may."""
        if self.policy != "enforce" or self.state == "trusted":
            return None
        return SourceError(self._sentence, hint=self.hint)

    @property
    def warning(self) -> str | None:
        """What to tell somebody who wants to be warned."""
        return self._sentence if self.policy == "warn" and self.state != "trusted" else None

    @property
    def _sentence(self) -> str:
        return f"`{self.package}` is not to be trusted: {self.message}"


def judge(
    folder: Path,
    manifest: Manifest,
    demand: Demand | None,
    time: datetime.datetime | None = None,
) -> Verdict:
    """What the signature of the package in ``folder`` is worth, whose files were just compared with
    its ``manifest``. ``time`` is when; now, unless it is given.

    Raises:
        SourceError: a file that the user named (a key, a list) cannot be used.
        ToolchainError: the library for signatures is missing, and there is one to check.
    """
    asked = demand if demand and demand.policy != "off" else None
    verdict = partial(Verdict, package=folder, policy=asked.policy if asked else "off")
    if not bundle.is_there(folder):
        words, hint = ("not signed", None) if asked is None else _unsigned(asked)
        return verdict(state="unsigned", signer=None, message=words, hint=hint)
    try:
        signature = bundle.read(folder)
        coverage.check(signature, coverage.digests(folder, manifest))
        if asked is None:
            signer = Signer(kind=signature.kind, fingerprint=signature.fingerprint)
            words = (
                f"claims to be signed by {signer}; nothing proves it until you say whom to trust"
            )
            return verdict(state="unasked", signer=signer, message=words)
        signer = _signer(signature, asked, time)
    except Unsound as error:
        words = f"its signature does not count: {error.message}"
        state: State = "refused" if asked else "unasked"
        return verdict(state=state, signer=None, message=words, hint=error.hint)
    words = f"signed by {signer}, as {asked.source} asks"
    return verdict(state="trusted", signer=signer, message=words)


def obey(verdict: Verdict, note: Callable[[str], None]) -> None:
    """Do as the user's policy has it.

    Raises:
        SourceError: the package must not be opened.
    """
    if error := verdict.error:
        raise error
    if warning := verdict.warning:
        note(f"warning: {warning}")


def _unsigned(demand: Demand) -> tuple[str, str]:
    """What to say of a package that ``demand`` wants signed, and what to do."""
    return f"not signed, and {_wish(demand)}", "ask whoever made it to sign it"


def _wish(demand: Demand) -> str:
    """Who asks for whose signature."""
    if demand.anchor is None:
        return f"{demand.source} asks for a signature"
    return f"{demand.source} asks for the signature of {demand.anchor}"


def _signer(signature: Signature, demand: Demand, time: datetime.datetime | None) -> Signer:
    """Whose ``signature`` it is, once it is proven.

    Raises:
        Unsound: it is not as ``demand`` wants it.
    """
    anchor = demand.anchor
    if anchor is None:
        raise Unsound(f"{demand.source} names nobody to trust", hint="add a rule to it")
    if signature.fingerprint in demand.revoked:
        what = "key" if signature.kind == "key" else "certificate"
        raise Unsound(
            f"{demand.source} has revoked the {what} {signature.fingerprint}", hint=library.HINT
        )
    wanted = {Keys: "key", Certificates: "certificate", Identity: "sigstore"}[type(anchor)]
    if signature.kind != wanted:
        words = {"key": "with a key", "certificate": "with a certificate"}
        made = words.get(signature.kind, "through sigstore")
        raise Unsound(f"it was made {made}, and {_wish(demand)}", hint=library.HINT)
    if isinstance(anchor, Keys):
        return _by_key(signature, anchor, demand)
    if isinstance(anchor, Certificates):
        return _by_certificate(signature, anchor, demand, time)
    library.check_identity(signature, anchor.name, anchor.issuer, anchor.roots)
    subject, issuer = json_files.shown(anchor.name), json_files.shown(anchor.issuer)
    return Signer(kind="sigstore", subject=subject, issuer=issuer)


def _by_key(signature: Signature, anchor: Keys, demand: Demand) -> Signer:
    keys = [key for key in pem.public_keys(anchor.file) if key.fingerprint not in demand.revoked]
    if not keys:
        raise Unsound(
            f"{demand.source} has revoked every key of `{anchor.file.name}`", hint=library.HINT
        )
    fitting = [key for key in keys if signature.fingerprint in (None, key.fingerprint)]
    if not fitting:
        held = " or ".join(key.fingerprint for key in keys)
        raise Unsound(
            f"it was made by the key {signature.fingerprint}, and `{anchor.file.name}` is {held}",
            hint=library.HINT,
        )
    for key in fitting[:-1]:
        try:
            library.check_key(signature, key)
        except Unsound:
            continue
        return Signer(kind="key", fingerprint=key.fingerprint)
    library.check_key(signature, fitting[-1])
    return Signer(kind="key", fingerprint=fitting[-1].fingerprint)


def _by_certificate(
    signature: Signature, anchor: Certificates, demand: Demand, time: datetime.datetime | None
) -> Signer:
    library.require()
    roots = b"".join(pem.certificates(file) for file in anchor.files)
    lists = pem.revocations(anchor.revocations) if anchor.revocations else []
    with library.guarded("its certificates cannot be read"):  # OpenSSL has an eye of its own
        certificates.check(signature.chain, roots, lists, time, demand.revoked)
        subject = certificates.subject(signature.chain[0])
    library.check_chain(signature, roots)
    return Signer(kind="certificate", fingerprint=signature.fingerprint, subject=subject)
