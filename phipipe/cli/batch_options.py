"""The options of a batch, alike for commands that start one now and those that do so later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import completions
from phipipe.cli.options import JOBS, ON, PUBLISH, Count, UserPath, taking
from phipipe.files.user_paths import Kind

if TYPE_CHECKING:
    from phipipe.batch.selection import Item


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which recipes of ``paths``: those that match one of each kind of pattern that is given."""

    paths: Sequence[Path]
    names: Sequence[str]
    tags: Sequence[str]
    devices: Sequence[str]
    backends: Sequence[str]
    changed_since: str | None

    def items(self) -> list[Item]:
        """The builds, as they are today.

        Raises:
            RecipeError: nothing matches, or a recipe is wrong.
        """
        from phipipe import backends
        from phipipe.batch import selection

        wanted = selection.Wanted(
            names=self.names,
            tags=self.tags,
            devices=self.devices,
            backends=self.backends,
            changed_since=self.changed_since,
        )
        return selection.select(self.paths, wanted, backends.OptionsOf())

    @property
    def words(self) -> list[str]:
        """The arguments as they were given."""
        patterns = {
            "--name": self.names,
            "--tag": self.tags,
            "--device": self.devices,
            "--backend": self.backends,
            "--changed-since": [self.changed_since] if self.changed_since else [],
        }
        given = [
            word for option, values in patterns.items() for v in values for word in (option, v)
        ]
        return [*map(str, self.paths), *given]


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a batch is made."""

    out: Path
    keep: int
    keep_going: bool
    jobs: int | None
    on: str | None
    on_finish: str | None
    publish: bool

    @property
    def words(self) -> list[str]:
        """The options as they were given."""
        values: Mapping[str, object] = {
            "--out": self.out,
            "--keep": self.keep,
            "--jobs": self.jobs,
            "--on": self.on,
            "--on-finish": self.on_finish,
        }
        given = [
            word
            for option, value in values.items()
            if value is not None
            for word in (option, str(value))
        ]
        flags = {"--fail-fast": not self.keep_going, "--no-publish": not self.publish}
        return [*given, *(flag for flag, is_set in flags.items() if is_set)]


RECIPES = UserPath(Kind.EITHER, missing="recipe or folder of recipes")
CHOSEN = taking(
    "chosen",
    Chosen,
    [
        click.argument("paths", nargs=-1, required=True, type=RECIPES, metavar="RECIPE|FOLDER..."),
        click.option(
            "--name",
            "names",
            multiple=True,
            metavar="GLOB",
            help="Only builds or recipes of this name.",
        ),
        click.option(
            "--tag", "tags", multiple=True, metavar="GLOB", help="Only recipes with this tag."
        ),
        click.option(
            "--device",
            "devices",
            multiple=True,
            shell_complete=completions.devices,
            metavar="GLOB",
            help="Only builds for this device.",
        ),
        click.option(
            "--backend",
            "backends",
            multiple=True,
            shell_complete=completions.backends,
            metavar="GLOB",
            help="Only builds with this backend.",
        ),
        click.option(
            "--changed-since",
            metavar="GIT_REF",
            help="Only recipes that changed since then, or local files they name.",
        ),
    ],
)
MANNER = taking(
    "manner",
    Manner,
    [
        click.option(
            "--out",
            default="batch",
            show_default=True,
            type=UserPath(Kind.NEW_FOLDER),
            help="Where it all goes.",
        ),
        click.option(
            "--keep",
            default=3,
            show_default=True,
            type=Count(min=1),
            help="Packages kept of each build.",
        ),
        click.option(
            "--keep-going/--fail-fast",
            default=True,
            help="After a failure, go on with other builds (the default).",
        ),
        JOBS,
        ON,
        PUBLISH,
        click.option(
            "--on-finish",
            metavar="COMMAND|URL",
            help="Told at the end: gets batch.json's path, or batch.json by POST.",
        ),
    ],
)
