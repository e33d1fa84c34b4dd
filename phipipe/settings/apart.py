"""A cache apart from the user's, for as long as something is made that must not lean on it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from phipipe.settings.rows import BY_KEY
from phipipe.settings.settings import Settings

_turn = threading.Lock()  # the environment is one for all threads


@contextmanager
def cache_in(folder: Path) -> Iterator[Settings]:
    """While this lasts, the cache of this process and its children is ``folder``, and nothing is
    shared with other machines. Toolchains stay where they are.

    It holds for all threads: whoever builds something else meanwhile does it there, too.

    Raises:
        RecipeError: as ``Settings.read``.
    """
    with _turn:
        settings = Settings.read()
        toolchains = settings.toolchains.absolute()
        changed = {
            BY_KEY["cache"].variable: str(folder),
            BY_KEY["toolchains"].variable: str(toolchains),
        }
        before = {name: value for name in changed if (value := os.environ.get(name)) is not None}
        os.environ.update(changed)
        try:
            yield replace(
                settings, cache=folder, toolchains=toolchains, remote=None, remote_writes=False
            )
        finally:
            for name in changed:
                del os.environ[name]
            os.environ.update(before)
