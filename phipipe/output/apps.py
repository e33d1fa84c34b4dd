"""What `apps` and `export` print as JSON, by name; as ``output``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class App:
    """An app that people already have.

    Attributes:
        app: its name, for `--for` and `package.for`.
        title: how it calls itself.
        about: what it is and where it runs.
        opens: backend whose packages it opens → what else they must be, in words.
        adds: files made for it that a package may hold itself.
        installs: whether `export --install` can put a package where it finds it.
        fits: whether it opens the package that was asked about; None without one.
        why: why it does not.
        words: what to say before the commands.
        commands: what to run in the package's folder, line by line.
        then: what to say after them.
    """

    app: str
    title: str
    about: str
    opens: dict[str, str]
    adds: list[str]
    installs: bool
    fits: bool | None
    why: str | None
    words: str
    commands: list[str]
    then: str


@dataclass(frozen=True, kw_only=True)
class Export:
    """A package in the layout of an app.

    Attributes:
        app: the app's name.
        title: how it calls itself.
        folder: where it lies; None: in the app's own store.
        files: paths in the folder.
        written: False where all of it was there already.
        installed: where the app has it, in words; None: it was not installed.
        words: what to say before the commands.
        commands: what to run in the folder next, line by line.
        then: what to say after them.
    """

    app: str
    title: str
    folder: Path | None
    files: list[str]
    written: bool
    installed: str | None
    words: str
    commands: list[str]
    then: str
