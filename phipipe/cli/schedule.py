"""The commands that have an engine start a batch on time: schedule export, schedule serve."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers, completions
from phipipe.cli.batch_options import CHOSEN, MANNER, Chosen, Manner
from phipipe.cli.groups import Group
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, UserPath, taking
from phipipe.errors import ToolchainError
from phipipe.files.user_paths import Kind
from phipipe.words import counted

if TYPE_CHECKING:
    from types import ModuleType

    from phipipe.batch.timetable import Job

AT = click.option(
    "--at", default="0 2 * * *", show_default=True, metavar="CRON", help="When: a cron expression."
)
JOB = click.option(
    "--job", default="nightly", show_default=True, help="What the schedule is called."
)


@dataclass(frozen=True, kw_only=True)
class When:
    """When a batch starts, and what the schedule is called."""

    at: str  # a cron expression
    job: str


@click.group(
    cls=Group,
    epilog="Example:  phipipe schedule export --systemd recipes --tag nightly --at '0 2 * * *'",
)
def schedule() -> None:
    """Batches on a timetable."""


@schedule.command(
    "export", epilog="Example:  phipipe schedule export --cron recipes --at '0 2 * * *' --write ."
)
@click.option("--cron", "kind", flag_value="cron", help="A line for crontab.")
@click.option("--systemd", "kind", flag_value="systemd", help="A service and a timer.")
@click.option("--github-actions", "kind", flag_value="github-actions", help="A workflow.")
@click.option("--airflow", "kind", flag_value="airflow", help="A DAG, for Airflow 3.")
@click.option(
    "--install",
    metavar="REQUIREMENT",
    help="What pip gets on GitHub's machines, such as 'phipipe @ git+https://HOST/OWNER/NAME@TAG' "
    "or a path in the repository. Default: the commit that this phipipe was installed from.",
)
@CHOSEN
@MANNER
@taking("when", When, [AT, JOB])
@click.option(
    "--write",
    type=UserPath(Kind.NEW_FOLDER),
    metavar="FOLDER",
    help="Write there instead of to stdout.",
)
@AS_JSON
def export(
    chosen: Chosen,
    manner: Manner,
    when: When,
    kind: str | None,
    install: str | None,
    write: Path | None,
    as_json: bool,
) -> None:
    """Print files that have an engine of yours start `phipipe batch`: the options are those of
    `batch`."""
    from phipipe.batch import timetable
    from phipipe.output import batch

    if kind is None:
        raise click.UsageError(
            f"choose one of {', '.join('--' + name for name in timetable.FORMATS)}"
        )
    job = replace(_job(chosen, manner, when), install=_requirement(kind, install, manner))
    note(timetable.words(when.at))
    items = chosen.items()
    note(f"{counted(len(items), 'build')} today")
    files = timetable.files(kind, job)
    written = None if write is None else timetable.write(files, write)
    if as_json:
        texts = zip(written or files, files.values(), strict=True)
        rows = [batch.File(path=str(path), text=text) for path, text in texts]
        answers.give(
            batch.Exported(kind=kind, written=written is not None, builds=len(items), files=rows)
        )
    elif written is None:
        _print(files)
    else:
        for target in written:
            echo(f"wrote {target}")


def _requirement(kind: str, install: str | None, manner: Manner) -> str:
    """What pip gets where ``kind`` of engine installs phipipe; nothing where it starts ours."""
    from phipipe.batch import origin

    if kind != "github-actions":
        if install is not None:
            raise click.UsageError(f"--{kind} starts the phipipe of this machine: no --install.")
        return ""
    extras = {"dask"} if "--on" in manner.words else set()
    return origin.requirement(install, frozenset(extras))


def _job(chosen: Chosen, manner: Manner, when: When) -> Job:
    """What an engine starts, and when."""
    from phipipe.batch import timetable

    return timetable.Job(
        name=timetable.name(when.job),
        at=when.at,
        words=["batch", *chosen.words, *manner.words, "--log-format", "json"],
        program=_program(),
        folder=Path.cwd(),
        out=manner.out,
    )


def _print(files: Mapping[str, str]) -> None:
    """The texts of ``files``, under their names if there are several."""
    for path, text in files.items():
        echo(f"# --- {path}\n{text}" if len(files) > 1 else text.rstrip("\n"))


def _program() -> list[str]:
    """The words that start phipipe as it is here: engines start with an empty environment."""
    from phipipe.settings import given as given_by_user

    given = [f"{name}={value}" for name, value in given_by_user().items()]
    command = shutil.which("phipipe")
    return [
        *(["/usr/bin/env", *given] if given else []),
        *([command] if command else [sys.executable, "-m", "phipipe"]),
    ]


@schedule.command(
    "serve", epilog="Example:  phipipe schedule serve recipes --tag nightly --cron '0 2 * * *'"
)
@CHOSEN
@MANNER
@click.option(
    "--cron", "--at", "at", default="0 2 * * *", show_default=True, help="When: a cron expression."
)
@click.option(
    "--timezone",
    default="UTC",
    show_default=True,
    metavar="ZONE",
    shell_complete=completions.zones,
    help="Whose clock: Europe/Berlin, say.",
)
@JOB
@click.option(
    "--work-pool",
    metavar="POOL",
    help="Leave it to the workers of this pool instead of running it here.",
)
def serve(
    chosen: Chosen, manner: Manner, at: str, timezone: str, job: str, work_pool: str | None
) -> None:
    """Have a Prefect server start `phipipe batch` on time: the options are those of `batch`.

    Runs here until it is stopped. A run that is due while the one before has not ended is left out.
    """
    from phipipe.batch import timetable

    note(timetable.words(at, zone=timetable.zone(timezone)))
    name = timetable.name(job)
    items = chosen.items()
    flow = _prefect()
    timed = flow.Timed(
        name=name,
        cron=at,
        timezone=timezone,
        words=["batch", *chosen.words, *manner.words],
        folder=Path.cwd(),
    )
    place = flow.reach(work_pool)
    note(f"{counted(len(items), 'build')} today; `{flow.FLOW}/{timed.name}` at {place}")
    if work_pool:
        flow.deploy(timed, work_pool)
        echo(f"start a worker where it shall run:  prefect worker start --pool {work_pool}")
    else:
        flow.watch(timed)


def _prefect() -> ModuleType:
    """Our module for Prefect.

    Raises:
        ToolchainError: Prefect is not installed.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")  # or Prefect tells its makers what is deployed
    try:
        from phipipe.batch import prefect as flow
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("prefect", "httpx"):
            raise
        hint = "pip install 'phipipe[prefect]'"
        raise ToolchainError(
            "`phipipe schedule serve` needs Prefect, which is not installed", hint=hint
        ) from None
    return flow
