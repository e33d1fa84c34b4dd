"""What commands work with: the user's settings, the store, the machines that do steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from phipipe.cli.messages import note

if TYPE_CHECKING:
    from phipipe.execution.manner import Engine
    from phipipe.settings import Settings
    from phipipe.store.store import Store


class Workplace(NamedTuple):
    """What every build needs."""

    settings: Settings
    store: Store


def settings_of_user() -> Settings:
    """What the environment and files of settings say."""
    from phipipe.settings import Settings

    return Settings.read()


def store_of_user() -> Workplace:
    """The settings and the store that they name."""
    from phipipe.store.store import Store

    settings = settings_of_user()
    return Workplace(settings, Store(settings.cache, notify=note))


def engine_of(on: str | None) -> Engine | None:
    """What does the steps of a run ``--on`` somewhere; None for this machine."""
    if on is None:
        return None
    from phipipe.cluster import client

    return client.engine(on)


def planning_on(on: str | None) -> AbstractContextManager[None]:
    """While this lasts, plans know the machines that a run ``--on`` somewhere has."""
    if on is None:
        return nullcontext()
    from phipipe import hardware
    from phipipe.cluster import client

    return hardware.there(client.machines(on, note))
