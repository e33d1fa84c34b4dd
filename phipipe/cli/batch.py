"""The commands for many builds: batch, and the worker that does steps of others' builds."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers, completions
from phipipe.cli.batch_options import CHOSEN, MANNER, Chosen, Manner
from phipipe.cli.groups import command
from phipipe.cli.messages import LOG, complain, echo, note
from phipipe.cli.options import AS_JSON, LOG_FORMAT, Count
from phipipe.cli.workplace import settings_of_user, store_of_user
from phipipe.words import counted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from phipipe.api import batches
    from phipipe.api.workplace import Workplace
    from phipipe.batch.selection import Item
    from phipipe.execution.results import Listener
    from phipipe.planning.plan import Plan


@command("phipipe batch recipes --tag nightly --out batch")
@CHOSEN
@MANNER
@click.option(
    "--dry-run", is_flag=True, help="Say what would be built, what it takes and how long; no more."
)
@LOG_FORMAT
@AS_JSON
def batch(chosen: Chosen, manner: Manner, dry_run: bool, as_json: bool) -> None:
    """Build many recipes as one, and compare with what was accepted before. Run it again to go on
    after anything.

    Each of --name, --tag, --device and --backend may be repeated: one must match.
    """
    from phipipe.api import batches
    from phipipe.batch import hooks, report
    from phipipe.cli import tables

    started = datetime.datetime.now(datetime.UTC)
    items = chosen.items()
    place = store_of_user()
    warnings = _plan(items, place, manner)
    if dry_run:
        _foretell(items, place, warnings, as_json)
        return
    done = batches.build(items, place, _manner(manner), _audience, LOG.stream)
    summary = batches.finish(done, manner.out, started).summary
    if as_json:
        answers.give_text(report.dump(summary))
    else:
        echo(tables.table(report.rows(done), right=report.NUMBERS))
        echo(f"\n{report.total(done)}")
        echo(f"\nboard    {manner.out / 'board.html'}\nsummary  {manner.out / 'batch.json'}")
    for one in done:
        if one.error:
            note(f"{one.item.name} {one.state}:", is_error=True)
            complain(one.error)
    code = report.exit_code(done)
    if manner.on_finish:
        trouble = hooks.tell(manner.on_finish, manner.out / "batch.json", code)
        _warn([trouble] if trouble else [])
    if code:
        raise click.exceptions.Exit(code)


def _foretell(
    items: Sequence[Item], place: Workplace, warnings: Sequence[str], as_json: bool
) -> None:
    """Say what the batch would do; exit as it would with what is refused."""
    from phipipe.api import plan_words
    from phipipe.cli import show_plans
    from phipipe.execution import outlook
    from phipipe.execution.bench import Bench

    plans = [item.plan for item in items if item.plan]
    outlooks = outlook.foreseen(plans, Bench(place.store, place.settings, note))
    if as_json:
        answers.give(plan_words.foreseen_json(items, outlooks, warnings))
    elif outlooks:
        echo(show_plans.overview(outlooks))
    errors = [(item.name, item.error) for item in items if item.error]
    for name, error in errors:
        note(f"{name} would be refused:")
        complain(error)
    if errors:
        raise click.exceptions.Exit(max(error.exit_code for _, error in errors))


def _plan(items: Sequence[Item], place: Workplace, manner: Manner) -> list[str]:
    """Plan the builds, and say what is doubtful, and how many are refused; returns what is
    doubtful."""
    from phipipe.api import batches
    from phipipe.batch import hooks

    warnings = batches.plan(items, place, _manner(manner), note)
    doubt = hooks.doubt(manner.on_finish) if manner.on_finish else None
    doubts = [*warnings, doubt] if doubt else warnings
    _warn(doubts)
    refused = sum(item.plan is None for item in items)
    note(f"{counted(len(items), 'build')}, {refused} refused")
    return doubts


def _manner(manner: Manner) -> batches.Manner:
    """The options of the command, as Python has them."""
    from phipipe.api import batches

    return batches.Manner(
        out=manner.out,
        keep=manner.keep,
        fail_fast=not manner.keep_going,
        jobs=manner.jobs,
        on=manner.on,
        publish=manner.publish,
    )


def _audience(plans: Sequence[Plan]) -> AbstractContextManager[Listener]:
    from phipipe.cli import listeners

    return listeners.many(plans, sys.stderr, silent=LOG.silent)


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        note(f"warning: {warning}")


@command("phipipe worker --scheduler dask://localhost:8786")
@click.option(
    "--scheduler", required=True, metavar="dask://HOST:PORT", help="Whose steps are done here."
)
@click.option("--jobs", default=1, show_default=True, type=Count(min=1), help="Steps side by side.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    shell_complete=completions.devices,
    help="A device that this machine is.",
)
@click.option(
    "--toolchain",
    "toolchains",
    multiple=True,
    metavar="NAME",
    shell_complete=completions.toolchains,
    help="Only steps of this toolchain.",
)
def worker(scheduler: str, jobs: int, devices: Sequence[str], toolchains: Sequence[str]) -> None:
    """Do steps of `run --on` and `batch --on` here, until it is stopped; a scheduler may come and
    go.

    Results go through PHIPIPE_REMOTE, which all machines name alike.
    """
    from phipipe.cluster import resources as shares
    from phipipe.cluster import worker as cluster_worker

    resources = shares.resources(devices, toolchains)
    cluster_worker.serve(scheduler, settings_of_user(), jobs, resources, note)
