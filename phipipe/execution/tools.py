"""The toolchains that a run uses: installed once, checked once, and the same until its end."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping

from phipipe.errors import ToolchainError
from phipipe.settings import Settings
from phipipe.steps import Json
from phipipe.toolchains import environments
from phipipe.toolchains.environments import Installed


class Tools:
    """Methods may be called from several threads. ``is_stopped`` ends an installation."""

    def __init__(
        self, settings: Settings, note: Callable[[str], None], is_stopped: Callable[[], bool]
    ) -> None:
        self._settings, self._note, self._is_stopped = settings, note, is_stopped
        self._known: dict[str, Installed] = {}
        self._checked: set[str] = set()
        # one thread installs, others wait
        self._preparing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def has(self, name: str) -> bool:
        """Whether toolchain ``name`` is installed; from then on it is used as it is."""
        if name not in self._known:
            usable = environments.installed(name, self._settings)
            if usable is None:
                return False
            self._known[name] = usable
        return True

    def would_have(self, name: str) -> bool:
        """The same, remembering nothing."""
        return name in self._known or environments.installed(name, self._settings) is not None

    def get(self, name: str) -> Installed:
        """Toolchain ``name``, installed if it has to be, which can take minutes.

        Raises:
            ToolchainError: it cannot be installed.
            Interrupted: ``is_stopped`` said so.
        """
        with self._preparing[name]:
            if name not in self._known:
                self._known[name] = environments.ensure(
                    name, self._settings, self._note, self._is_stopped
                )
            return self._known[name]

    def check(self, name: str, packages: Mapping[str, Json]) -> None:
        """Before the first real use of toolchain ``name``: are all files there, and are
        ``packages``, which the key counts, still what it has?

        Raises:
            ToolchainError: no.
        """
        with self._preparing[name]:
            if name not in self._checked:
                self._known[name] = environments.check(
                    name, self._settings, self._note, self._is_stopped
                )
                self._checked.add(name)
            if self._known[name].packages != packages:
                raise ToolchainError(
                    f"toolchain `{name}` was replaced meanwhile", hint="run the same command again"
                )
