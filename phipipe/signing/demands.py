"""What a user asks of a package's signature: whose it must be, and what follows if it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args

from phipipe.errors import RecipeError

Policy = Literal["off", "warn", "enforce"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """One of the public keys in a file."""

    file: Path

    def __str__(self) -> str:
        return f"a key of `{self.file.name}`"


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """A certificate that leads to one of those in ``files``."""

    files: Sequence[Path]
    revocations: Path | None = None

    def __str__(self) -> str:
        named = ", ".join(f"`{file.name}`" for file in self.files)
        return f"a certificate that leads to {named}"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A person or a workflow that an issuer vouches for, through sigstore.

    ``roots`` is a sigstore client's trust configuration; None: the public instance's.
    """

    name: str
    issuer: str
    roots: Path | None = None

    def __str__(self) -> str:
        return f"`{self.name}` through sigstore"


Anchor = Keys | Certificates | Identity


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is asked of one package.

    Attributes:
        policy: `off` asks nothing, `warn` says what is wrong, `enforce` refuses.
        anchor: whose signature it must have; None: nobody's will do.
        source: who asks, in words: `--key`, or a rule of a file.
        revoked: fingerprints of keys and certificates that are not trusted any more.
    """

    policy: Policy
    anchor: Anchor | None
    source: str
    revoked: frozenset[str] = field(default=frozenset())


class Trust(Protocol):
    """Whom a user trusts."""

    def demand(self, name: str) -> Demand:
        """What is asked of the package ``name``."""
        ...


@dataclass(frozen=True)
class Same:
    """The same is asked of every package."""

    asked: Demand

    def demand(self, name: str) -> Demand:
        """What is asked of any package."""
        return self.asked


def checked(policy: str) -> Policy:
    """``policy``, if it is one.

    Raises:
        RecipeError: it is none.
    """
    for known in POLICIES:
        if policy == known:
            return known
    raise RecipeError(f"there is no policy `{policy}`", hint=f"give one of {', '.join(POLICIES)}")
