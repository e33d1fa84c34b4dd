"""Packages that go to others, and come from them."""

from __future__ import annotations

from phipipe.api import workplace
from phipipe.api.workplace import Note, UserPath, path_of
from phipipe.errors import RecipeError
from phipipe.files.user_paths import Kind
from phipipe.publishing import pull as pulling
from phipipe.publishing import push as pushing
from phipipe.publishing.pull import Pulled as Pulled
from phipipe.publishing.push import OnProgress
from phipipe.publishing.push import Pushed as Pushed


def push(
    package: UserPath,
    address: str,
    *,
    force: bool = False,
    dry_run: bool = False,
    private: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Pushed:
    """Publish the package in the folder ``package``, which is verified first.

    The same package again sends nothing. Nothing is visible at ``address`` before all of it is
    there.

    Args:
        package: its folder; of a batch's folder of versions, the one that was accepted last.
        address: ``hf://OWNER/NAME[@REVISION]``, ``oci://HOST[:PORT]/NAME:TAG`` or
            ``s3://BUCKET/PREFIX``.
        force: also where another package is, or files of others are.
        dry_run: ask and compare, and change nothing.
        private: how a repository is made on the hub, where there is none yet; other places have
            no such option.
        on_progress: a function that is told how many of how many bytes are there.

    Raises:
        RecipeError: ``address`` is none; or ``private`` is given for a registry or a bucket.
        SourceError: the package was changed, or must not be trusted; another one is there; the
            place refuses, does not answer, or needs a word on who may see it.
        ToolchainError: what speaks to such places is not installed.
    """
    return pushed(
        package,
        address,
        workplace.warned,
        on_progress,
        force=force,
        dry_run=dry_run,
        private=private,
    )


def pushed(
    package: UserPath,
    address: str,
    note: Note,
    on_progress: OnProgress | None = None,
    *,
    force: bool,
    dry_run: bool,
    private: bool | None,
) -> Pushed:
    """As ``push``; ``note`` hears what the user's trust file only warns of, and of waits."""
    return pushing.push(
        workplace.package_path(package),
        _text(address),
        force=force,
        dry_run=dry_run,
        private=private,
        on_progress=on_progress or _silent,
        note=note,
    )


def pull(
    address: str, out: UserPath | None = None, *, on_progress: OnProgress | None = None
) -> Pulled:
    """Fetch the package at ``address``, verify it, and put it into the folder ``out`` at once.

    What had arrived of a package when an earlier call broke is not fetched again. Where the very
    package is at ``out`` already, only what is attached to it (a signature, its provenance) is
    fetched, as far as that is another at the address.

    Args:
        address: as for ``push``.
        out: the package's own folder, which holds nothing or this very package; without it
            ``packages/NAME``.
        on_progress: a function that is told how many of how many bytes are there.

    Raises:
        RecipeError: ``address`` is none.
        SourceError: there is no package, or it is not what it says; or the place refuses or does
            not answer.
        StoreError: something else is at ``out``, or it cannot be written.
        ToolchainError: what speaks to such places is not installed.
    """
    return pulled(address, workplace.warned, out, on_progress)


def pulled(
    address: str,
    note: Note,
    out: UserPath | None = None,
    on_progress: OnProgress | None = None,
) -> Pulled:
    """As ``pull``; ``note`` hears of waits."""
    folder = None if out is None else path_of(out, Kind.NEW_FOLDER, "out", RecipeError)
    return pulling.pull(_text(address), folder, on_progress or _silent, note)


def _silent(done: int, total: int) -> None:
    """Nobody listens."""


def _text(address: object) -> str:
    if not isinstance(address, str):
        raise TypeError(f"address is of the type {type(address).__name__}: give a text")
    return address
