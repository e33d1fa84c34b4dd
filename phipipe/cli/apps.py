"""The commands about apps that open packages: apps, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from phipipe.cli import answers, completions
from phipipe.cli.grid import table
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, PACKAGE, UserPath
from phipipe.errors import SourceError, StoreError
from phipipe.files.user_paths import Kind
from phipipe.output.apps import App, Export
from phipipe.words import counted


@command("phipipe apps packages/quickstart")
@click.argument("package", required=False, type=UserPath(Kind.FOLDER, SourceError))
@AS_JSON
def apps(package: Path | None, as_json: bool) -> None:
    """List apps that open packages, and what they need; of PACKAGE, which of them open it."""
    from phipipe.api import apps as api_apps

    rows = api_apps.listed(package, note)
    if as_json:
        answers.give(rows)
    else:
        echo(_listed(rows) if package is None else _asked(rows))


def _listed(rows: Sequence[App]) -> str:
    opens = [[f"{b} ({n})" if n else b for b, n in row.opens.items()] for row in rows]
    return table(
        [
            {"app": row.app, "opens": ", ".join(opened), "what": f"{row.title}: {row.about}"}
            for row, opened in zip(rows, opens, strict=True)
        ]
    )


def _asked(rows: Sequence[App]) -> str:
    """What opens the package first, each with what to do; then what does not, and why."""
    blocks = [_block(f"{row.title} ({row.app})", row) for row in rows if row.fits]
    rest = [{"app": row.app, "why not": str(row.why)} for row in rows if not row.fits]
    return "\n\n".join([*blocks, *([table(rest)] if rest else [])])


def _block(head: str, one: App | Export) -> str:
    """``head``, and below it what to do, as plain text."""
    before, after = (text.replace("**", "").replace("`", "") for text in (one.words, one.then))
    lines = [*([before] if before else []), *one.commands, *([after] if after else [])]
    return "\n".join([head, *(f"  {line}".rstrip() for line in lines)])


@command("phipipe export packages/quickstart --for foundry-local --to quickstart-foundry")
@PACKAGE
@click.option(
    "--for",
    "apps",
    multiple=True,
    required=True,
    metavar="APP",
    shell_complete=completions.apps,
    help="An app of `phipipe apps`; repeatable.",
)
@click.option(
    "--to",
    type=UserPath(Kind.NEW_FOLDER, StoreError),
    help="The folder; for several apps, each gets one of its own there.",
)
@click.option("--install", is_flag=True, help="Put it where the app finds it on this machine.")
@click.option(
    "--force", is_flag=True, help="Replace an earlier export, or a model of the same name."
)
@AS_JSON
def export(
    package: Path,
    apps: Sequence[str],
    to: Path | None,
    install: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Lay a package out as an app wants to find it, and name the next commands."""
    from phipipe.api import apps as api_apps

    made = api_apps.exported(package, apps, to, install=install, force=force, note=note)
    if as_json:
        answers.give(made)
    else:
        echo("\n\n".join(map(_told, made)))


def _told(one: Export) -> str:
    """What became of it, and what to do next."""
    if one.folder is None:
        return str(one.installed)
    state = "written" if one.written else "there already"
    if one.installed:
        return f"{one.installed} ({state})"
    return _block(f"{one.title}: {counted(len(one.files), 'file')} at {one.folder} ({state})", one)
