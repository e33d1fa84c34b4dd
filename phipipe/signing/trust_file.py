"""The trust file: which packages must be signed by whom, by patterns of their names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from phipipe.errors import RecipeError
from phipipe.files import user_paths
from phipipe.recipe.complaints import At, complaints
from phipipe.recipe.document import read
from phipipe.recipe.places import Document, Problem
from phipipe.recipe.strict import Model
from phipipe.signing.demands import Anchor, Certificates, Demand, Identity, Keys, Policy
from phipipe.steps import Json

FINGERPRINT = r"^sha256:[0-9a-f]{64}$"
FILES = ("key", "certificate", "crl", "sigstore_roots")


class Written(Model):
    """What is left out is not asked for, so a key that is written has a value."""

    @model_validator(mode="before")
    @classmethod
    def _has_values(cls, data: Json) -> Json:
        for key, value in data.items() if isinstance(data, dict) else ():
            if value is None and key in cls.model_fields:
                raise At(key, f"`{key}` has no value; write one, or leave the key out")
        return data


class Rule(Written):
    """Whose signature some packages must have."""

    packages: str = Field(min_length=1, description="A pattern of names, such as `phi35-*`.")
    policy: Policy = Field("enforce", description="`off`, `warn` or `enforce`.")
    key: str | None = Field(
        None,
        min_length=1,
        description="A file with public keys (PEM); any of them may have signed.",
    )
    certificate: str | None = Field(
        None, min_length=1, description="A file with certificates (PEM) that vouch for signers."
    )
    crl: str | None = Field(
        None, min_length=1, description="A file with lists of revoked certificates (PEM)."
    )
    identity: str | None = Field(
        None, min_length=1, description="Who signed through sigstore: a mail address, a workflow."
    )
    issuer: str | None = Field(
        None, min_length=1, description="The address of who vouches for the identity."
    )
    sigstore_roots: str | None = Field(
        None, min_length=1, description="A sigstore client's trust configuration, for no network."
    )
    revoked: list[str] = Field(
        [], description="Fingerprints (`sha256:…`) of keys and certificates no longer trusted."
    )

    @model_validator(mode="after")
    def _whole(self) -> Rule:
        given = [one for one in ("key", "certificate", "identity") if getattr(self, one)]
        if len(given) > 1 or (not given and self.policy != "off"):
            there = " and ".join(f"`{one}`" for one in given) or "none"
            raise ValueError(
                f"a rule has exactly one of `key`, `certificate`, `identity`; there is {there}"
            )
        if (self.identity is None) != (self.issuer is None):
            raise ValueError("`identity` and `issuer` belong together")
        for key, needs in (("crl", "certificate"), ("sigstore_roots", "identity")):
            if getattr(self, key) and not getattr(self, needs):
                raise At(key, f"`{key}` is for rules with `{needs}`")
        if odd := [one for one in self.revoked if not re.fullmatch(FINGERPRINT[1:-1], one)]:
            raise At("revoked", f"`{odd[0][:80]}` is no fingerprint: `sha256:` and 64 hex digits")
        return self


class Rules(Written):
    """A trust file."""

    default: Policy = Field("enforce", description="What holds where no rule does.")
    rules: list[Rule] = Field(min_length=1, description="The first that fits a name decides.")


@dataclass(frozen=True)
class TrustFile:
    """A trust file that makes sense; ``path`` is where it lies."""

    path: Path
    rules: Rules

    def demand(self, name: str) -> Demand:
        """What it asks of the package ``name``: what the first rule says that fits it."""
        for number, rule in enumerate(self.rules.rules, 1):
            if fnmatchcase(name, rule.packages):
                return Demand(
                    policy=rule.policy,
                    anchor=_anchor(rule, self.path.parent),
                    source=f"rule {number} of `{self.path}`",
                    revoked=frozenset(rule.revoked),
                )
        source = f"`{self.path}`, no rule of which is for `{name}`,"
        return Demand(policy=self.rules.default, anchor=None, source=source)


def load(path: Path) -> TrustFile:
    """The trust file at ``path``. Paths in it count from its folder.

    Raises:
        RecipeError: everything that is wrong with it, by line and column.
    """
    document = read(path, "trust file")
    if not isinstance(document.data, dict):
        message = "a trust file is a mapping of keys: `default:`, `rules:`"
        raise document.error([Problem(*document.place(()), message)])
    try:
        rules = Rules.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        raise document.error(
            Problem(*document.place(where, key), message)
            for where, message, key in complaints(error, Rules)
        ) from None
    _look_for_files(rules, document, path.parent)
    return TrustFile(path, rules)


def _look_for_files(rules: Rules, document: Document, folder: Path) -> None:
    problems = []
    for number, rule in enumerate(rules.rules):
        for key in FILES:
            text = getattr(rule, key)
            if text is None:
                continue
            file = user_paths.inside(folder, text)
            odd = user_paths.problem(file, user_paths.Kind.FILE, text)
            if odd or not file.is_file():
                place = document.place(("rules", number, key))
                problems.append(Problem(*place, f"`{text}` {odd or 'is not there'}"))
    if problems:
        raise document.error(problems)


def _anchor(rule: Rule, folder: Path) -> Anchor | None:
    if rule.key:
        return Keys(file=user_paths.inside(folder, rule.key))
    if rule.certificate:
        lists = user_paths.inside(folder, rule.crl) if rule.crl else None
        return Certificates(files=(user_paths.inside(folder, rule.certificate),), revocations=lists)
    if rule.identity and rule.issuer:
        roots = user_paths.inside(folder, rule.sigstore_roots) if rule.sigstore_roots else None
        return Identity(name=rule.identity, issuer=rule.issuer, roots=roots)
    return None


def of_user(path: Path | None) -> TrustFile | None:
    """The trust file that the settings name; None where they name none.

    Raises:
        RecipeError: as ``load``; that it is missing as well: who names one wants it to count.
    """
    if path is None:
        return None
    try:
        return load(path)
    except RecipeError as error:
        hint = error.hint or "it is the trust file of your settings: PHIPIPE_TRUST, or `trust`"
        raise RecipeError(error.message, hint=hint, problems=error.problems) from None
