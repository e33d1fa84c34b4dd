"""Commands for many recipes: a batch, and the timetables of engines that start one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from phipipe.cli import answers
from phipipe.cli.console import (
    AS_JSON,
    LOG_FORMAT,
    ON,
    Count,
    UserPath,
    cli,
    command,
    complain,
    echo,
    engine_of,
    note,
    planning_on,
    settings_of_user,
    store_of_user,
)
from phipipe.errors import ToolchainError
from phipipe.files.user_paths import Kind


def _selection(function: Callable[..., None]) -> Callable[..., None]:
    """Which recipes, alike for every command that takes many."""
    for decorate in reversed(_SELECTION):
        function = decorate(function)
    return function


def _manner(function: Callable[..., None]) -> Callable[..., None]:
    """How a batch is made, alike for those that start one now or later."""
    for decorate in reversed(_MANNER):
        function = decorate(function)
    return function


RECIPES = UserPath(Kind.EITHER, missing="recipe or folder of recipes")
_SELECTION = (
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
        "--device", "devices", multiple=True, metavar="GLOB", help="Only builds for this device."
    ),
    click.option(
        "--backend",
        "backends",
        multiple=True,
        metavar="GLOB",
        help="Only builds with this backend.",
    ),
    click.option(
        "--changed-since",
        metavar="GIT_REF",
        help="Only recipes that changed since then, or local files they name.",
    ),
)


_MANNER = (
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
    click.option(
        "--jobs", type=Count(min=1), help="Steps side by side; default from cores and memory."
    ),
    ON,
    click.option(
        "--on-finish",
        metavar="COMMAND|URL",
        help="Told at the end: gets batch.json's path, or batch.json by POST.",
    ),
)


@command("phipipe batch recipes --tag nightly --out batch")
@_selection
@_manner
@LOG_FORMAT
@AS_JSON
def batch(
    paths: Sequence[Path],
    out: Path,
    keep: int,
    keep_going: bool,
    jobs: int | None,
    on: str | None,
    on_finish: str | None,
    as_events: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Build many recipes as one, and compare with what was accepted before. Run it again to go on
    after anything.

    Each of --name, --tag, --device and --backend may be repeated: one must match.
    """
    import datetime

    from phipipe import backends as known
    from phipipe.batch import batch as batches
    from phipipe.batch import hooks, selection
    from phipipe.batch import report as batch_report
    from phipipe.cli import show
    from phipipe.package import figures
    from phipipe.run import events

    started = datetime.datetime.now(datetime.UTC)
    items = selection.select(paths, selection.Wanted(**wanted), known.OptionsOf())
    settings, store = store_of_user()
    with planning_on(on):
        warnings = batches.plan(items, store, settings, out, elsewhere=on is not None)
    for warning in [*warnings, *filter(None, [on_finish and hooks.doubt(on_finish)])]:
        note(f"warning: {warning}")
    plans = [item.plan for item in items if item.plan]
    note(f"{figures.counted(len(items), 'build')}, {len(items) - len(plans)} refused")
    named, stream = [item.name for item in items], sys.stderr if as_events else None
    with (
        show.many(plans, sys.stderr, silent=as_events) as inner,
        events.recorded(store.root, "batch", named, inner, stream) as recorder,
    ):
        for plan in plans:
            recorder.advised(plan.build.name, plan.warnings)
        done = batches.run(
            items,
            store,
            settings,
            recorder,
            out,
            jobs=jobs,
            keep=keep,
            fail_fast=not keep_going,
            engine=engine_of(on),
        )
        for one in done:
            seconds, package = (
                (one.outcome.seconds, one.outcome.package) if one.outcome else (0.0, None)
            )
            recorder.ended(one.item.name, one.error, seconds, package)
    summary = batch_report.summary(done, out, started, datetime.datetime.now(datetime.UTC))
    batch_report.write(done, out, "Fidelity board", summary)
    if as_json:
        answers.give_text(batch_report.dump(summary))
    else:
        echo(
            f"{batch_report.table(done)}\n\nboard    {out / 'board.html'}\nsummary  "
            f"{out / 'batch.json'}"
        )
    for one in done:
        if one.error:
            note(f"{one.item.name} {one.state}:")
            complain(one.error)
    code = batch_report.exit_code(done)
    if on_finish and (trouble := hooks.tell(on_finish, out / "batch.json", code)):
        note(f"warning: {trouble}")
    if code:
        raise click.exceptions.Exit(code)


@command("phipipe worker --scheduler dask://localhost:8786")
@click.option(
    "--scheduler", required=True, metavar="dask://HOST:PORT", help="Whose steps are done here."
)
@click.option("--jobs", default=1, show_default=True, type=Count(min=1), help="Steps side by side.")
@click.option(
    "--device", "devices", multiple=True, metavar="NAME", help="A device that this machine is."
)
@click.option(
    "--toolchain", "toolchains", multiple=True, metavar="NAME", help="Only steps of this toolchain."
)
def worker(scheduler: str, jobs: int, devices: Sequence[str], toolchains: Sequence[str]) -> None:
    """Do steps of `run --on` and `batch --on` here, until it is stopped; a scheduler may come and
    go.

    Results go through PHIPIPE_REMOTE, which all machines name alike.
    """
    from phipipe.cluster import resources
    from phipipe.cluster import worker as cluster_worker

    had = resources.resources(devices, toolchains)
    cluster_worker.serve(scheduler, settings_of_user(), jobs, had, note)


@cli.group(
    epilog="Example:  phipipe schedule export --systemd recipes --tag nightly --at '0 2 * * *'"
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
@_selection
@_manner
@click.option(
    "--at", default="0 2 * * *", show_default=True, metavar="CRON", help="When: a cron expression."
)
@click.option("--job", default="nightly", show_default=True, help="What the schedule is called.")
@click.option(
    "--write",
    type=UserPath(Kind.NEW_FOLDER),
    metavar="FOLDER",
    help="Write there instead of to stdout.",
)
@AS_JSON
def export(
    paths: Sequence[Path],
    kind: str | None,
    at: str,
    job: str,
    write: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Print files that have an engine of yours start `phipipe batch`: the options are those of
    `batch`."""
    from phipipe import backends as known
    from phipipe import settings
    from phipipe.batch import selection, timetable
    from phipipe.output import documents
    from phipipe.package import figures

    if kind is None:
        raise click.UsageError(
            f"choose one of {', '.join('--' + name for name in timetable.FORMATS)}"
        )
    note(timetable.words(at))
    wanted = _wanted(given)
    items = selection.select(paths, selection.Wanted(**wanted), known.OptionsOf())
    note(f"{figures.counted(len(items), 'build')} today")
    found = shutil.which("phipipe")
    ours = [f"{name}={value}" for name, value in settings.given().items()]
    ours = ["/usr/bin/env", *ours] if ours else []  # engines start with an empty environment
    made = timetable.files(
        kind,
        timetable.Job(
            name=timetable.name(job),
            at=at,
            words=[
                "batch",
                *map(str, paths),
                *_words(wanted),
                *_manner_words(given),
                "--log-format",
                "json",
            ],
            program=[*ours, *([found] if found else [sys.executable, "-m", "phipipe"])],
            folder=Path.cwd(),
            out=given["out"],
        ),
    )
    written = timetable.write(made, write) if write is not None else []
    if as_json:
        texts = zip(written or made, made.values(), strict=True)
        files = [documents.File(path=str(path), text=text) for path, text in texts]
        answers.give(
            documents.Exported(kind=kind, written=write is not None, builds=len(items), files=files)
        )
    elif write is None:
        for path, text in made.items():
            echo(f"# --- {path}\n{text}" if len(made) > 1 else text.rstrip("\n"))
    for target in () if as_json else written:
        echo(f"wrote {target}")


@schedule.command(
    "serve", epilog="Example:  phipipe schedule serve recipes --tag nightly --cron '0 2 * * *'"
)
@_selection
@_manner
@click.option(
    "--cron", "--at", "at", default="0 2 * * *", show_default=True, help="When: a cron expression."
)
@click.option(
    "--timezone",
    default="UTC",
    show_default=True,
    metavar="ZONE",
    help="Whose clock: Europe/Berlin, say.",
)
@click.option("--job", default="nightly", show_default=True, help="What the schedule is called.")
@click.option(
    "--work-pool",
    metavar="POOL",
    help="Leave it to the workers of this pool instead of running it here.",
)
def serve(
    paths: Sequence[Path], at: str, timezone: str, job: str, work_pool: str | None, **given: Any
) -> None:
    """Have a Prefect server start `phipipe batch` on time: the options are those of `batch`.

    Runs here until it is stopped. A run that is due while the one before has not ended is left out.
    """
    from phipipe import backends as known
    from phipipe.batch import selection, timetable
    from phipipe.package import figures

    note(timetable.words(at, zone=timetable.zone(timezone)))
    name = timetable.name(job)
    wanted = _wanted(given)
    items = selection.select(paths, selection.Wanted(**wanted), known.OptionsOf())
    os.environ.setdefault("DO_NOT_TRACK", "1")  # or Prefect tells its makers what is deployed
    try:
        from phipipe.batch import prefect
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("prefect", "httpx"):
            raise
        hint = "pip install 'phipipe[prefect]'"
        raise ToolchainError(
            "`phipipe schedule serve` needs Prefect, which is not installed", hint=hint
        ) from None
    timed = prefect.Timed(
        name=name,
        cron=at,
        timezone=timezone,
        words=["batch", *map(str, paths), *_words(wanted), *_manner_words(given)],
        folder=Path.cwd(),
    )
    place = prefect.reach(work_pool)
    note(f"{figures.counted(len(items), 'build')} today; `{prefect.FLOW}/{timed.name}` at {place}")
    if work_pool:
        prefect.deploy(timed, work_pool)
        echo(f"start a worker where it shall run:  prefect worker start --pool {work_pool}")
    else:
        prefect.watch(timed)


def _wanted(given: dict[str, Any]) -> dict[str, Any]:
    """The options of ``_SELECTION`` among ``given``."""
    return {key: given[key] for key in ("names", "tags", "devices", "backends", "changed_since")}


def _manner_words(given: dict[str, Any]) -> list[str]:
    """The options that say how, as they were given."""
    options = {
        "out": "--out",
        "keep": "--keep",
        "jobs": "--jobs",
        "on": "--on",
        "on_finish": "--on-finish",
    }
    made = [
        word
        for key, option in options.items()
        if given[key] is not None
        for word in (option, str(given[key]))
    ]
    return made if given["keep_going"] else [*made, "--fail-fast"]


def _words(wanted: dict[str, Any]) -> list[str]:
    """The options that choose as they were given."""
    told = {"names": "--name", "tags": "--tag", "devices": "--device", "backends": "--backend"}
    made = [
        word for key, option in told.items() for value in wanted[key] for word in (option, value)
    ]
    return made + (["--changed-since", wanted["changed_since"]] if wanted["changed_since"] else [])
