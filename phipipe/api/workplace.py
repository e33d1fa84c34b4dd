"""The settings, the store and the machines that a call works with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from phipipe.errors import PhipipeError, RecipeError, SourceError
from phipipe.files.user_paths import Kind, problem, shown
from phipipe.models import gguf_files
from phipipe.package import versions
from phipipe.settings import Settings
from phipipe.store.store import Store

if TYPE_CHECKING:
    from phipipe.execution.manner import Engine

T = TypeVar("T")
Note = Callable[[str], None]
UserPath = str | Path
Names = str | Sequence[str]


def silent(line: str) -> None:
    """Nobody listens to notes."""


def warned(line: str) -> None:
    """Who opens a package from Python hears of what is doubtful by Python's own means."""
    warnings.warn(line.removeprefix("warning: "), stacklevel=2)


class Workplace(NamedTuple):
    """What every build needs."""

    settings: Settings
    store: Store


def of_user(note: Note) -> Workplace:
    """The user's settings, and the store that they name; ``note`` hears what the store says.

    Raises:
        RecipeError: a setting has a value that makes no sense.
        StoreError: the cache cannot be used.
    """
    settings = Settings.read()
    return Workplace(settings, Store(settings.cache, notify=note))


def engine_of(on: str | None) -> Engine | None:
    """Where the steps of a run ``on`` other machines are done; None for this machine."""
    if on is None:
        return None
    from phipipe.cluster import client

    return client.engine(on)


def planning_on(on: str | None, note: Note) -> AbstractContextManager[None]:
    """While this lasts, plans know the machines that a run ``on`` them has.

    Raises:
        TypeError: ``on`` is no text.
    """
    if on is None:
        return nullcontext()
    if not isinstance(on, str):
        raise TypeError(f"on is {_kind(on)}: give a text such as dask://HOST:PORT")
    from phipipe import hardware
    from phipipe.cluster import client

    return hardware.there(client.machines(on, note))


def path_of(
    given: UserPath, kind: Kind, what: str, error: type[PhipipeError] = RecipeError
) -> Path:
    """``given`` as a path, after a look at whether it can be the ``kind`` that is meant.

    In a text, ``~`` at the beginning stands for the home folder.

    Raises:
        error: it cannot; ``what`` begins the sentence.
        TypeError: it is neither a text nor a path.
    """
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"{what} is {_kind(given)}: give a text or a pathlib.Path")
    text = given if isinstance(given, str) else None
    # Path's own raises where there is no such user
    path = Path(given) if text is None else Path(os.path.expanduser(text))  # noqa: PTH111
    if not str(given):
        raise error(f"{what} is empty", hint="give a path")
    if odd := problem(path, kind, text):
        raise error(f"{what}: `{shown(path)}` {odd}", hint="give another path")
    return path


def package_path(path: UserPath) -> Path:
    """The folder of a package; of a batch's folder of versions the one that was accepted last.

    Raises:
        SourceError: it cannot be one.
    """
    return versions.accepted(path_of(path, Kind.FOLDER, "the package", SourceError))


def file_path(path: UserPath | None, what: str) -> Path | None:
    """A file, where one is given.

    Raises:
        SourceError: it cannot be one.
    """
    return None if path is None else path_of(path, Kind.FILE, what, SourceError)


def original_path(path: UserPath) -> Path:
    """A checkpoint's folder, or a GGUF.

    Raises:
        SourceError: it can be neither.
    """
    kind = Kind.FILE if str(path).lower().endswith(gguf_files.SUFFIX) else Kind.FOLDER
    return path_of(path, kind, "the original", SourceError)


def check_count(value: int | None, name: str, least: int = 1) -> None:
    """Refuse a number below ``least``; None stands for the usual one.

    Raises:
        RecipeError: it is too small.
        TypeError: it is no whole number.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(f"{name} is {_kind(value)}: give a whole number from {least} on")
    if value is not None and value < least:
        raise RecipeError(f"{name} is {value}", hint=f"give a whole number from {least} on")


def names_of(given: Names) -> tuple[str, ...]:
    """One name, or several, as a tuple.

    Raises:
        TypeError: they are something else.
    """
    return texts((given,) if isinstance(given, str) else given, "only")


def texts(given: object, name: str) -> tuple[str, ...]:
    """Several texts as a tuple.

    Raises:
        TypeError: ``given`` is something else; says that ``name`` is wrong.
    """
    every = tuple(given) if isinstance(given, Iterable) else (None,)
    if all(isinstance(one, str) for one in every):
        return every
    raise TypeError(f"{name} is {_kind(given)}: give a text, or a list of texts")


def _kind(given: object) -> str:
    """What ``given`` is, as a message says it."""
    shown = repr(given) if given is None or isinstance(given, int | float) else ""
    return shown if 0 < len(shown) < 30 else f"of the type {type(given).__name__}"


def named(name: str, builds: Mapping[str, T]) -> T:
    """The one called ``name``.

    Raises:
        KeyError: there is none; says which there are.
    """
    if name not in builds:
        raise KeyError(f"no build `{name}`; there are {', '.join(builds)}")
    return builds[name]
