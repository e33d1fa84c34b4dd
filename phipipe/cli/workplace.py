"""What commands work with: the user's settings, the store, the machines that do steps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from phipipe.cli.messages import note

if TYPE_CHECKING:
    from phipipe.api.workplace import Workplace
    from phipipe.settings import Settings


def settings_of_user() -> Settings:
    """What the environment and files of settings say."""
    from phipipe.settings import Settings

    return Settings.read()


def store_of_user() -> Workplace:
    """The settings and the store that they name."""
    from phipipe.api import workplace

    return workplace.of_user(note)


def planning_on(on: str | None) -> AbstractContextManager[None]:
    """While this lasts, plans know the machines that a run ``--on`` somewhere has."""
    from phipipe.api import workplace

    return workplace.planning_on(on, note)
