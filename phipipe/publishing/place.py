"""What every kind of place has to offer to those who publish and fetch packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phipipe.hub.published import Published
from phipipe.publishing.sealed import Item, Sealed
from phipipe.recipe.addresses import Address

OnBytes = Callable[[int], None]
"""Told how many bytes of what is to be moved are there."""


@dataclass(frozen=True)
class Seen:
    """What a place shows now. ``foreign``: files of others that a package would lie among.
    ``private``: whether the whole world may read it; None where the place does not say."""

    manifest: bytes | None = None  # of the package; None where there is none
    digest: str | None = None  # what that says of itself
    foreign: tuple[str, ...] = ()
    private: bool | None = None


class Place(Protocol):
    """An address that was opened; what it holds is asked for once, by ``look``."""

    @property
    def address(self) -> Address:
        """Where it is."""

    def close(self) -> None:
        """Close its connections; it is not used afterwards."""

    def look(self) -> Seen:
        """What is there now.

        Raises:
            SourceError: the place does not answer, or refuses.
        """

    def missing(self, package: Sealed) -> tuple[Item, ...]:
        """Files of ``package`` that are not there yet, by what ``look`` saw."""

    def prepare(self) -> None:
        """See whether anything may be sent, before it is; after ``look``.

        Raises:
            SourceError: not so: there is no token, or nobody said who may see it.
        """

    def send(self, package: Sealed, missing: Sequence[Item], on_bytes: OnBytes) -> None:
        """Bring ``missing``, then show ``package`` at the address in place of what ``look`` saw.

        Raises:
            SourceError: the place does not answer, refuses, or changed since ``look``.
        """

    def tidy(self, package: Sealed) -> None:
        """Finish what a push of ``package``, which is shown, left undone behind it."""

    def described(self) -> Mapping[str, Published]:
        """Path → what the place says of each file of the package, as far as it says anything;
        what is attached and of what size, too."""

    def fetch(self, files: Sequence[Published], folder: Path, on_bytes: OnBytes) -> None:
        """Bring ``files`` into ``folder``, each whole and with its own hash; what is there in part
        is completed.

        Raises:
            SourceError: the place does not answer, refuses, or gives other bytes.
            OSError: they cannot be written.
        """
