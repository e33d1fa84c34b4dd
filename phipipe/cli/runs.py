"""The commands about runs: runs ls, show, logs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers, completions
from phipipe.cli.groups import Group
from phipipe.cli.messages import echo
from phipipe.cli.options import AS_JSON, UserPath
from phipipe.cli.workplace import settings_of_user
from phipipe.files.user_paths import Kind

if TYPE_CHECKING:
    from phipipe.execution.past_runs import Run
    from phipipe.steps import Json

ENDS = ("step_finished", "step_failed", "build_finished")  # events that `show` lists


@click.group(cls=Group, epilog="Example:  phipipe runs logs latest")
def runs() -> None:
    """What `run`, `batch`, `eval` and `measure` did: which steps, how long, how they ended."""


@runs.command("ls", epilog="Example:  phipipe runs ls --json")
@AS_JSON
def list_runs(as_json: bool) -> None:
    """List runs, the newest first."""
    from phipipe.cli import tables
    from phipipe.execution import past_runs
    from phipipe.output import lists

    rows = [lists.Run(**_fields(run)) for run in past_runs.runs(settings_of_user().cache)]
    answers.give(rows) if as_json else echo(tables.runs(rows))


@runs.command("show", epilog="Example:  phipipe runs show latest --profile")
@click.argument("run_id", metavar="ID", shell_complete=completions.runs)
@click.option(
    "--profile",
    "profiled",
    is_flag=True,
    help="Where the time went: of each step time, CPU, disk, memory and waits; the critical path.",
)
@click.option(
    "--page",
    type=UserPath(Kind.NEW_FILE),
    metavar="FILE",
    help="Write the profile as a page, too: a chart of the steps by time.",
)
@AS_JSON
def show(run_id: str, profiled: bool, page: Path | None, as_json: bool) -> None:
    """Show a run's builds and steps; ID may be its beginning, or `latest`."""
    from phipipe.cli import tables
    from phipipe.execution import event_words, past_runs
    from phipipe.output import lists

    run = past_runs.find(settings_of_user().cache, run_id)
    if profiled or page is not None:
        from phipipe.cli import profiles

        profiles.show(run, as_json=as_json, page=page)
        return
    if as_json:
        details = [dict(event) for event in run.events]
        answers.give(lists.RunDetails(**_fields(run), events=details))
        return
    rows = [event_words.row(event) for event in run.events if event["event"] in ENDS]
    echo(f"{run.id}  {run.command}, {run.state}\n")
    echo(tables.table([tables.cells(row) for row in rows]))


@runs.command("logs", epilog="Example:  phipipe runs logs latest quantize")
@click.argument("run_id", metavar="ID", shell_complete=completions.runs)
@click.argument("step", required=False, shell_complete=completions.steps)
@AS_JSON
def logs(run_id: str, step: str | None, as_json: bool) -> None:
    """Print a run's events in their order, of all steps or of one."""
    from phipipe.execution import event_words, past_runs

    lines = past_runs.of_step(past_runs.find(settings_of_user().cache, run_id), step)
    if as_json:
        answers.give(lines)
    for event in () if as_json else lines:
        echo(event_words.line(event))


def _fields(run: Run) -> dict[str, Json]:
    """The fields of ``lists.Run``."""
    return {
        "id": run.id,
        "command": run.command,
        "started": run.started,
        "state": run.state,
        "exit_code": run.exit_code,
        "seconds": None if run.seconds is None else round(run.seconds, 1),
        "builds": list(run.builds),
    }
