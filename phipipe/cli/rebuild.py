"""The command that makes a finished package again: rebuild."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers
from phipipe.cli.attempt import audience
from phipipe.cli.groups import command
from phipipe.cli.messages import LOG, echo, note
from phipipe.cli.options import AS_JSON, LOG_FORMAT, PACKAGE, UserPath, taking
from phipipe.errors import SourceError
from phipipe.files.user_paths import Kind
from phipipe.words import counted

if TYPE_CHECKING:
    from phipipe.api.rebuilding import Rebuilt

REBUILT = "rebuilt"  # where the new package goes unless told otherwise
SOURCE = click.option(
    "--source",
    type=UserPath(Kind.EITHER, SourceError),
    help="The original's folder or GGUF (of an adapter: its base), where it was a local one.",
)
ADAPTER = click.option(
    "--adapter",
    type=UserPath(Kind.FOLDER, SourceError),
    help="The adapter's folder, where it was a local one.",
)
TEXTS = click.option(
    "--text",
    "texts",
    multiple=True,
    type=UserPath(Kind.FILE, SourceError),
    help="A text, or a file of prompts, that was a local one; repeatable, in any order.",
)
DEVICE = click.option(
    "--device",
    "device_file",
    type=UserPath(Kind.FILE, SourceError),
    help="The device file, where the recipe had one of its own.",
)


@dataclass(frozen=True, kw_only=True)
class Files:
    """What of the maker's own files is there."""

    source: Path | None
    adapter: Path | None
    texts: Sequence[Path]
    device_file: Path | None


@command("phipipe rebuild packages/quickstart --check")
@PACKAGE
@click.option(
    "--check",
    is_flag=True,
    help="Only compare: exit code 5 if it is another package; keep nothing.",
)
@taking("files", Files, [SOURCE, ADAPTER, TEXTS, DEVICE])
@click.option(
    "--out",
    type=UserPath(Kind.NEW_FOLDER),
    help=f"Where the new package goes; default {REBUILT}.",
)
@LOG_FORMAT
@AS_JSON
def rebuild(package: Path, check: bool, files: Files, out: Path | None, as_json: bool) -> None:
    """Make a package again from its own recipe, in an empty cache, and compare the two.

    Same tools, same bytes: every file is compared. What was measured is taken over from the
    package, since no two runs measure the same.
    """
    from phipipe.api import rebuilding
    from phipipe.execution.rebuild import Given

    if check and out is not None:
        raise click.UsageError("--check keeps no package: leave --out out, or --check")
    given = Given(
        source=files.source, adapter=files.adapter, texts=files.texts, device=files.device_file
    )
    target = None if check else out or Path(REBUILT)
    made = rebuilding.made_again(package, given, target, audience, note, LOG.stream)
    if as_json:
        answers.give(_document(package, made))
    else:
        _show(package, made)
    if check:
        made.check()


def _document(package: Path, made: Rebuilt) -> object:
    from phipipe.output import documents

    return documents.Rebuilt(
        package=str(package),
        equal=made.equal,
        differences=[
            documents.Difference(path=one.path, message=one.message) for one in made.differences
        ],
        reasons=list(made.reasons),
        taken_over=list(made.taken_over),
        rebuilt=str(made.package.path) if made.package else None,
    )


def _show(package: Path, made: Rebuilt) -> None:
    for reason in made.reasons:
        echo(f"likely reason: {reason}")
    for one in made.differences:
        echo(str(one))
    if made.equal:
        echo(f"{package}: made again, the same bit for bit")
    else:
        echo(f"{package}: made again, and {counted(len(made.differences), 'file')} differ")
    if made.taken_over:
        echo(f"taken over from it, not measured again: {', '.join(made.taken_over)}")
    if made.package is not None:
        echo(f"\npackage  {made.package.path}")
