"""How a package gets to a place: verified first, by its digest, and all of it or nothing.

The same package again sends nothing. What was sent before an attempt broke is not sent again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from phipipe.errors import RecipeError, SourceError
from phipipe.files import json_files
from phipipe.publishing import places, sealed
from phipipe.publishing.place import Place, Seen
from phipipe.publishing.sealed import Item, Sealed
from phipipe.recipe import addresses
from phipipe.words import counted

OnProgress = Callable[[int, int], None]
"""Told how many of how many bytes are there."""

State = Literal["pushed", "same", "dry-run"]
MOST_SHOWN = 5  # names in a sentence


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What became of a push. ``sent``: files that were not there (in a dry run: would be sent).
    ``replaced``: digest of the package that was there. ``private``: whether only some may read it;
    None where the place does not say."""

    address: str
    name: str
    digest: str
    state: State
    sent: tuple[Item, ...]
    replaced: str | None
    private: bool | None

    @property
    def sent_bytes(self) -> int:
        """Of all files in ``sent``."""
        return sum(item.size for item in self.sent)


def push(
    folder: Path,
    address: str,
    *,
    force: bool = False,
    dry_run: bool = False,
    private: bool | None = None,
    replaces: Collection[str] = (),
    on_progress: OnProgress = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Publish the package in ``folder`` at ``address``.

    Args:
        force: also where another package is, or files of others are.
        dry_run: ask and compare, and change nothing.
        private: how a repository is made on the hub, where there is none yet.
        replaces: digests of packages that this one may replace.
        note: hears what the user's trust file only warns of, and of waits.

    Raises:
        RecipeError: ``address`` is none; or ``private`` is given and it is none of the hub.
        SourceError: the package was changed; another one is there; the place refuses.
        ToolchainError: what speaks to such places is not installed.
    """
    target = addresses.parse(address)
    _check_private(target, private)
    package = sealed.read(folder, note)
    with contextlib.closing(places.of(target, private, note)) as place:
        seen = place.look()
        if not force and seen.digest not in replaces:
            _refuse_others(str(target), package, seen)
        missing = place.missing(package)
        state = _sent(place, package, seen, missing, dry_run, on_progress)
    return _pushed(str(target), package, seen, missing, state)


def _check_private(target: addresses.Address, private: bool | None) -> None:
    """Refuse a word on who may see it where that is not ours to say.

    Raises:
        RecipeError: so it is.
    """
    if private is None or isinstance(target, addresses.HubAddress):
        return
    whose = "bucket" if isinstance(target, addresses.BucketAddress) else "registry"
    raise RecipeError(
        f"`{target}`: visibility is the {whose}'s own, and no push changes it",
        hint=f"leave out {'--private' if private else '--public'}, and look at the {whose}'s own "
        "settings",
    )


def _pushed(
    address: str, package: Sealed, seen: Seen, missing: tuple[Item, ...], state: State
) -> Pushed:
    return Pushed(
        address=address,
        name=package.manifest.name,
        digest=package.digest,
        state=state,
        sent=missing,
        replaced=seen.digest if seen.digest != package.digest else None,
        private=seen.private,
    )


def _sent(
    place: Place,
    package: Sealed,
    seen: Seen,
    missing: Sequence[Item],
    dry_run: bool,
    on_progress: OnProgress,
) -> State:
    """Bring what is ``missing``, unless it is a dry run; what became of it."""
    if seen.digest == package.digest and not missing:
        if not dry_run:
            place.tidy(package)
        return "same"
    place.prepare()
    if dry_run:
        return "dry-run"
    total = sum(item.size for item in missing)
    place.send(package, missing, lambda there: on_progress(there, total))
    return "pushed"


def _refuse_others(address: str, package: Sealed, seen: Seen) -> None:
    """Refuse to take the place of what is there."""
    if seen.digest not in (None, package.digest):
        raise SourceError(
            f"`{address}` holds another package: {seen.digest} is there, {package.digest} is to "
            f"be pushed",
            hint="choose another address, or --force to replace it",
        )
    if seen.foreign:
        names = ", ".join(f"`{json_files.shown(name)}`" for name in seen.foreign[:MOST_SHOWN])
        raise SourceError(
            f"`{address}` holds {counted(len(seen.foreign), 'file')} that "
            f"{'belongs' if len(seen.foreign) == 1 else 'belong'} to no package: "
            f"{names}{' and more' if len(seen.foreign) > MOST_SHOWN else ''}",
            hint="choose another address, or --force to put the package among them",
        )
