"""The settings, the store and the machines that a call works with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from phipipe.errors import PhipipeError, RecipeError
from phipipe.files.user_paths import Kind, problem, shown
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
    """While this lasts, plans know the machines that a run ``on`` them has."""
    if on is None:
        return nullcontext()
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
    """
    text = given if isinstance(given, str) else None
    # Path's own raises where there is no such user
    path = Path(given) if text is None else Path(os.path.expanduser(text))  # noqa: PTH111
    if not str(given):
        raise error(f"{what} is empty", hint="give a path")
    if odd := problem(path, kind, text):
        raise error(f"{what}: `{shown(path)}` {odd}", hint="give another path")
    return path


def check_count(value: int | None, name: str, least: int = 1) -> None:
    """Refuse a number below ``least``; None stands for the usual one.

    Raises:
        RecipeError: it is too small.
    """
    if value is not None and value < least:
        raise RecipeError(f"{name} is {value}", hint=f"give a whole number from {least} on")


def names_of(given: Names) -> tuple[str, ...]:
    """One name, or several, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


def named(name: str, builds: Mapping[str, T]) -> T:
    """The one called ``name``.

    Raises:
        KeyError: there is none; says which there are.
    """
    if name not in builds:
        raise KeyError(f"no build `{name}`; there are {', '.join(builds)}")
    return builds[name]
