"""The commands about who made a package: sign, verify."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, PACKAGE, UserPath, taking
from phipipe.errors import RecipeError, SourceError
from phipipe.files.user_paths import Kind
from phipipe.words import counted

if TYPE_CHECKING:
    from phipipe.output import documents
    from phipipe.package.manifest import Finding
    from phipipe.signing.demands import Trust
    from phipipe.signing.verdict import Signer, Verdict

FILE = UserPath(Kind.FILE, SourceError, "file")


@dataclass(frozen=True, kw_only=True)
class With:
    """What signs."""

    key: Path | None
    cert: Path | None
    chain: Sequence[Path]
    sigstore: bool
    passphrase_env: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Whose signature a package must have."""

    key: Path | None
    cert: Sequence[Path]
    sigstore_identity: str | None
    sigstore_issuer: str | None
    sigstore_roots: Path | None
    trust: Path | None
    policy: str | None


WITH = [
    click.option("--key", type=FILE, help="The private key (PEM): EC P-256, P-384 or P-521."),
    click.option("--cert", type=FILE, help="The key's certificate (PEM)."),
    click.option(
        "--chain", type=FILE, multiple=True, help="A certificate above that (PEM); repeatable."
    ),
    click.option(
        "--sigstore", is_flag=True, help="Sign by an identity, through sigstore: needs the network."
    ),
    click.option(
        "--passphrase-env",
        default="SIGNING_KEY_PASSPHRASE",
        show_default=True,
        metavar="NAME",
        help="The environment variable that holds the key's passphrase; else a terminal is asked.",
    ),
]
ASKED = [
    click.option("--key", type=FILE, help="Public keys (PEM), one of which must have signed."),
    click.option(
        "--cert", type=FILE, multiple=True, help="Certificates (PEM) that vouch for the signer's."
    ),
    click.option("--sigstore-identity", metavar="WHO", help="Who must have signed, by sigstore."),
    click.option("--sigstore-issuer", metavar="URL", help="Who vouches for that identity."),
    click.option(
        "--sigstore-roots", type=FILE, help="A sigstore trust configuration, to need no network."
    ),
    click.option("--trust", type=UserPath(Kind.FILE), help="A trust file: rules by package name."),
    click.option(
        "--policy",
        type=click.Choice(["off", "warn", "enforce"]),
        help="What follows where that fails, in place of the trust file's own; else `enforce`.",
    ),
]


@command("phipipe sign packages/quickstart --key signing.key")
@PACKAGE
@taking("by", With, WITH)
@AS_JSON
def sign(package: Path, by: With, as_json: bool) -> None:
    """Sign a package with a key, a certificate or an identity.

    The package is verified first. The signature `model.sig` covers every other file, in the format
    of OpenSSF model signing. An older one is replaced.
    """
    from phipipe.output import documents
    from phipipe.signing import bundle, credentials
    from phipipe.signing import sign as signing

    if (by.key is None) != by.sigstore:
        raise RecipeError(
            "a package is signed by a key or through sigstore",
            hint=f"give --key FILE, or --sigstore; a new key: {credentials.NEW_KEY}",
        )
    if by.key is None and (by.cert or by.chain):
        raise RecipeError("--cert and --chain belong to a key", hint="give --key FILE")
    own = (
        credentials.BySigstore()
        if by.key is None
        else credentials.from_file(by.key, lambda: _passphrase(by), by.cert, by.chain)
    )
    signer = signing.sign(package, own)
    path = package / bundle.NAME
    if as_json:
        answers.give(
            documents.Signed(package=str(package), signature=str(path), signer=_signer(signer))
        )
    else:
        echo(f"{package}: signed by {signer}\nsignature  {path}")


@command("phipipe verify packages/quickstart --key signing.pub")
@PACKAGE
@taking("asked", Asked, ASKED)
@AS_JSON
def verify(package: Path, asked: Asked, as_json: bool) -> None:
    """Check that a package is complete and unchanged, that nothing in it runs or loads code, and
    who signed it.

    Every file's size and SHA-256, nothing added; kinds of files, settings and headers that phipipe
    writes, no others. Whose signature it must have, options say, or a trust file; without both,
    the signer is named, and nothing is asked.
    """
    from phipipe.output import documents
    from phipipe.signing import demands, opening

    policy = demands.checked(asked.policy) if asked.policy else None
    findings, verdict = opening.examine(package, _trust(asked), policy)
    ok = not findings and not (verdict and verdict.error)
    if as_json:
        told = [str(finding) for finding in findings]
        worth = _signature(verdict) if verdict else None
        answers.give(
            documents.Verified(package=str(package), ok=ok, findings=told, signature=worth)
        )
    _show(package, findings, verdict, quiet=as_json)


def _show(
    package: Path, findings: Sequence[Finding], verdict: Verdict | None, *, quiet: bool
) -> None:
    for finding in () if quiet else findings:
        echo(str(finding))
    if findings or verdict is None:
        raise SourceError(
            f"`{package}` is not as phipipe packages it: {counted(len(findings), 'finding')}",
            hint="do not open it; build it again, or ask for another copy",
        )
    if verdict.error:
        raise verdict.error
    if verdict.warning:
        note(f"warning: {verdict.warning}\n  → {verdict.hint}")
    if not quiet:
        echo(f"{package}: complete and unchanged\n{package}: {verdict.message}")


def _trust(asked: Asked) -> Trust | None:
    """Whom the user trusts: as options say, else as a trust file does."""
    from phipipe.api import signatures
    from phipipe.settings import Settings
    from phipipe.signing import trust_file

    named = [asked.key, asked.cert, asked.sigstore_identity, asked.trust]
    if sum(map(bool, named)) > 1:
        raise RecipeError(
            "--key, --cert, --sigstore-identity and --trust exclude each other", hint="give one"
        )
    if bool(asked.sigstore_identity) != bool(asked.sigstore_issuer):
        raise RecipeError("--sigstore-identity and --sigstore-issuer belong together")
    if asked.sigstore_roots and not asked.sigstore_identity:
        raise RecipeError("--sigstore-roots is for --sigstore-identity")
    found: Trust | None = None
    if asked.trust:
        found = trust_file.load(asked.trust)
    elif any(map(bool, named)):
        given = signatures.Trust(
            key=asked.key,
            certificate=asked.cert or None,
            identity=asked.sigstore_identity,
            issuer=asked.sigstore_issuer,
            sigstore_roots=asked.sigstore_roots,
        )
        found = signatures.demanded(given, _option(asked))
    else:
        found = trust_file.of_user(Settings.read().trust)
    if asked.policy and found is None and asked.policy != "off":
        raise RecipeError(
            f"--policy {asked.policy} needs somebody to trust",
            hint="give --key FILE, --cert FILE or --trust FILE",
        )
    return found


def _option(asked: Asked) -> str:
    """The option that asks."""
    given = {"key": asked.key, "cert": asked.cert}
    return f"--{next((name for name, value in given.items() if value), 'sigstore-identity')}"


def _passphrase(by: With) -> str | None:
    """The key's passphrase: from the environment, else from the terminal, if there is one."""
    if value := os.environ.get(by.passphrase_env):
        return value
    if not sys.stdin.isatty():
        return None
    return str(click.prompt(f"passphrase of {by.key}", hide_input=True, err=True))


def _signer(signer: Signer) -> documents.Signer:
    from phipipe.output import documents

    return documents.Signer(**{one.name: getattr(signer, one.name) for one in fields(signer)})


def _signature(verdict: Verdict) -> documents.Signature:
    from phipipe.output import documents

    return documents.Signature(
        state=verdict.state,
        policy=verdict.policy,
        signer=_signer(verdict.signer) if verdict.signer else None,
        message=verdict.message,
    )
