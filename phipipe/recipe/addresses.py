"""Where packages are published: addresses of a hub's repository, an OCI registry's tag, a bucket.

Nothing is asked of anybody here. An address has one spelling: ``str`` of what was parsed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from phipipe.errors import RecipeError
from phipipe.files import user_paths
from phipipe.recipe.source import REPO

MAX_ADDRESS = 1000  # characters
NAME, DIGEST = "{name}", "{digest}"  # in a recipe's address: the build's name, its package's digest
DIGITS = 16  # of a digest, in an address
MAIN = "main"  # the hub's branch where an address names none
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")  # that may be asked without TLS
KINDS = "hf://OWNER/NAME[@REVISION], oci://HOST[:PORT]/NAME:TAG or s3://BUCKET/PREFIX"
# A branch or a tag of git, as the hub takes them.
_REVISION = r"(?!.*(\.\.|//|@\{))[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}(?<![./])"
_HOST = r"(\[[0-9a-fA-F:]{2,39}\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(:[1-9][0-9]{0,4})?"
_PART = r"[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*"  # of a repository's name, by the OCI's specification
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_PREFIX = r"[A-Za-z0-9!_.*'()+=-]+(/[A-Za-z0-9!_.*'()+=-]+)*"


@dataclass(frozen=True)
class HubAddress:
    """A model repository on the Hugging Face hub, at a branch, a tag or a commit."""

    repo: str
    revision: str = MAIN

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision != MAIN else "")


@dataclass(frozen=True)
class RegistryAddress:
    """A tag in a repository of an OCI registry."""

    host: str  # with its port, where it has one
    repository: str
    tag: str

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.repository}:{self.tag}"

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, and needs no TLS."""
        return re.sub(r":\d+$", "", self.host).lower() in LOCAL_HOSTS


@dataclass(frozen=True)
class BucketAddress:
    """All objects below a prefix of a bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


Address = HubAddress | RegistryAddress | BucketAddress


def parse(text: str) -> Address:
    """The address that ``text`` spells.

    Raises:
        RecipeError: it is none.
    """
    kind, there, rest = text.partition("://")
    readers = {"hf": _hub, "oci": _registry, "s3": _bucket}
    if not there or kind not in readers or len(text) > MAX_ADDRESS:
        raise _unfit(text, "it is no address that packages are published at", KINDS)
    return readers[kind](text, rest)


def named(text: str, name: str, digest: str) -> Address:
    """As ``parse``, where ``{name}`` in ``text`` stands for the build's ``name``, and ``{digest}``
    for the beginning of its package's."""
    return parse(text.replace(NAME, name).replace(DIGEST, digest[:DIGITS]))


def checked(text: str) -> str:
    """``text``, if it can be an address of a recipe's.

    Raises:
        ValueError: it cannot.
    """
    try:
        named(text, "name", "0" * DIGITS)
    except RecipeError as error:
        raise ValueError(f"{error.message}; {error.hint}") from None
    return text


def clash(texts: Sequence[str], names: Sequence[str]) -> str | None:
    """An address in ``texts`` that two of the builds ``names`` would have in common."""
    for text in texts:
        if DIGEST not in text and len({text.replace(NAME, name) for name in names}) < len(names):
            return text
    return None


def _unfit(text: str, reason: str, hint: str) -> RecipeError:
    return RecipeError(f"`{user_paths.shown(ascii(text)[1:-1])}`: {reason}", hint=f"give {hint}")


def _hub(text: str, rest: str) -> Address:
    repo, at, revision = rest.partition("@")
    form = "hf://OWNER/NAME, or hf://OWNER/NAME@REVISION"
    if not re.fullmatch(REPO[1:-1], repo) or len(repo) > 200 or re.search(r"--|\.\.", repo):
        raise _unfit(text, f"`{ascii(repo)[1:-1]}` is no OWNER/NAME on the hub", form)
    if at and not re.fullmatch(_REVISION, revision):
        raise _unfit(text, "what follows the `@` is no branch, tag or commit", form)
    return HubAddress(repo, revision or MAIN)


def _registry(text: str, rest: str) -> Address:
    host, _, path = rest.partition("/")
    repository, colon, tag = path.partition(":")
    form = "oci://HOST/NAME:TAG, such as oci://registry.example/team/phi:1"
    port = host.rpartition(":")[2] if re.search(r":\d+$", host) else "1"
    if not re.fullmatch(_HOST, host) or int(port) > 65535:
        raise _unfit(text, "it names no host of a registry", form)
    if not colon:
        raise _unfit(text, "it has no tag", form)
    if not re.fullmatch(rf"{_PART}(/{_PART})*", repository) or len(repository) > 255:
        raise _unfit(text, "registries take names of lower-case letters and digits alone", form)
    if not re.fullmatch(_TAG, tag):
        raise _unfit(text, "what follows the `:` is no tag", form)
    return RegistryAddress(host.lower(), repository, tag)


def _bucket(text: str, rest: str) -> Address:
    bucket, _, prefix = rest.partition("/")
    prefix, form = prefix.rstrip("/"), "s3://BUCKET/PREFIX"
    if not re.fullmatch(_BUCKET, bucket) or ".." in bucket:
        raise _unfit(text, f"`{ascii(bucket)[1:-1]}` is no name of a bucket", form)
    if not prefix:
        raise _unfit(text, "it has no prefix, and a package does not get a bucket of its own", form)
    if not re.fullmatch(_PREFIX, prefix) or {".", ".."} & set(prefix.split("/")):
        raise _unfit(text, "its prefix is no path of plain names", form)
    return BucketAddress(bucket, prefix)
