"""A package's signature as it lies there: bounded, parsed to the letter, and not believed yet.

The file is a sigstore bundle with a DSSE envelope around an in-toto statement, whose predicate
names every file with its SHA-256 (https://github.com/ossf/model-signing-spec, version 1.0). A
stranger wrote it: the library that checks signatures gets what was read here, spelled anew, so that
two readers of JSON cannot see two things in it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phipipe.errors import SourceError
from phipipe.evaluate import papers
from phipipe.files import json_files
from phipipe.package.closed_world import MAX_ATTACHED_BYTES
from phipipe.package.manifest_schema import MAX_FILES
from phipipe.steps import Json

NAME = papers.SIGNATURE
MEDIA = "application/vnd.dev.sigstore.bundle"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
MAX_CERTIFICATES = 16  # of a chain; the field's have three
HINT = "ask whoever signed it for another copy, or sign it again: phipipe sign PACKAGE --key FILE"

Kind = Literal["key", "certificate", "sigstore"]


class Unsound(SourceError):
    """A signature that proves nothing, and why."""


class _Part(BaseModel):
    """What is needed of a part; what else stands there is the library's to look at."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Key(_Part):
    hint: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] | None = None


class _Certificate(_Part):
    raw: Annotated[str, Field(alias="rawBytes")]


class _Chain(_Part):
    certificates: Annotated[list[_Certificate], Field(min_length=1, max_length=MAX_CERTIFICATES)]


class _Material(_Part):
    key: Annotated[_Key | None, Field(alias="publicKey")] = None
    chain: Annotated[_Chain | None, Field(alias="x509CertificateChain")] = None
    certificate: _Certificate | None = None
    log: Annotated[list[Json], Field(alias="tlogEntries")] = []


class _Mark(_Part):
    sig: str


class _Envelope(_Part):
    payload: str
    kind: Annotated[str, Field(alias="payloadType", pattern=f"^{PAYLOAD.replace('+', '[+]')}$")]
    signatures: Annotated[list[_Mark], Field(min_length=1, max_length=1)]


class _Bundle(_Part):
    media: Annotated[str, Field(alias="mediaType", pattern=f"^{MEDIA}[+.;]")]
    material: Annotated[_Material, Field(alias="verificationMaterial")]
    envelope: Annotated[_Envelope, Field(alias="dsseEnvelope")]


class _Resource(_Part):
    name: Annotated[str, Field(min_length=1, max_length=4096)]
    algorithm: Literal["sha256"]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Serialization(_Part):
    method: Literal["files"]


class _Predicate(_Part):
    serialization: _Serialization
    resources: Annotated[list[_Resource], Field(max_length=MAX_FILES + 100)]


class _Statement(_Part):
    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    predicate_type: Annotated[
        Literal["https://model_signing/signature/v1.0"], Field(alias="predicateType")
    ]
    predicate: _Predicate


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a signature says, whoever wrote it.

    Attributes:
        kind: how it can be checked.
        hint: of a key: SHA-256 of its PEM text, in hex; None where older signers left it out.
        chain: certificates in DER, the signer's own first; none with a key.
        files: every signed file's path and SHA-256.
        content: the whole bundle, for the library.
    """

    kind: Kind
    hint: str | None
    chain: Sequence[bytes]
    files: Mapping[str, str]
    content: Mapping[str, Json]

    @property
    def text(self) -> str:
        """It as JSON, spelled by us."""
        return json.dumps(self.content)

    @property
    def fingerprint(self) -> str | None:
        """Of the key that it claims, or of the signer's certificate: ``sha256:`` and hex."""
        digest = hashlib.sha256(self.chain[0]).hexdigest() if self.chain else self.hint
        return f"sha256:{digest}" if digest else None


def is_there(folder: Path) -> bool:
    """Whether the package in ``folder`` has a signature."""
    return (folder / NAME).exists()


def read(folder: Path) -> Signature:
    """The signature of the package in ``folder``; nothing of it is proven by that.

    Raises:
        Unsound: it cannot be read, is too large or nested too deep, or is no signature of this
            format.
    """
    path = folder / NAME
    try:
        return parse(json_files.read_bytes(path, MAX_ATTACHED_BYTES), path)
    except Unsound:
        raise
    except SourceError as error:
        raise Unsound(error.message, hint=HINT) from None


def parse(raw: bytes, path: Path) -> Signature:
    """As ``read``, of the content of ``path``."""
    try:
        content = json_files.parse(raw, path)
        bundle = _checked(_Bundle, content)
        payload = json_files.parse(_bytes(bundle.envelope.payload), path)
    except Unsound:
        raise
    except SourceError as error:
        raise Unsound(error.message, hint=HINT) from None
    statement = _checked(_Statement, payload)
    _bytes(bundle.envelope.signatures[0].sig)
    resources = statement.predicate.resources
    files = {one.name: one.digest for one in resources}
    if len(files) != len(resources):
        raise Unsound(f"`{NAME}` names a file twice", hint=HINT)
    kind, chain = _material(bundle.material)
    hint = bundle.material.key.hint if bundle.material.key else None
    return Signature(kind=kind, hint=hint or None, chain=chain, files=files, content=content)


def _material(material: _Material) -> tuple[Kind, tuple[bytes, ...]]:
    """How the signature can be checked, and the certificates that came with it."""
    given = (material.key, material.chain, material.certificate)
    if sum(one is not None for one in given) != 1:
        raise Unsound(f"`{NAME}` does not say by what it was signed", hint=HINT)
    if material.key:
        return "key", ()
    held = [material.certificate] if material.certificate else []
    held += material.chain.certificates if material.chain else []
    is_sigstore = material.certificate is not None or bool(material.log)
    return "sigstore" if is_sigstore else "certificate", tuple(_bytes(one.raw) for one in held)


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Unsound(f"`{NAME}` is damaged: what should be base64 is not", hint=HINT) from None


_P = TypeVar("_P", bound=_Part)


def _checked(model: type[_P], value: Json) -> _P:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if not first["loc"]:
            raise Unsound(f"`{NAME}` is damaged: it holds no JSON object", hint=HINT) from None
        where = json_files.shown(".".join(map(str, first["loc"]))) or "its top"
        raise Unsound(
            f"`{NAME}` is no signature of the model-signing format 1.0: `{where}`: "
            f"{first['msg'][0].lower()}{first['msg'][1:]}",
            hint=HINT,
        ) from None
