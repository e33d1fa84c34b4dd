"""The commands about the cache: cache ls, verify, gc."""

from __future__ import annotations

import click

from phipipe.cli import answers
from phipipe.cli.groups import Group
from phipipe.cli.messages import echo
from phipipe.cli.options import AS_JSON, Gib
from phipipe.cli.workplace import settings_of_user, store_of_user
from phipipe.errors import StoreError


@click.group(cls=Group, epilog="Example:  phipipe cache gc --budget 20")
def cache() -> None:
    """What the cache holds, whether it is intact, and how to shrink it."""


@cache.command("ls", epilog="Example:  phipipe cache ls --json")
@AS_JSON
def list_stored(as_json: bool) -> None:
    """List stored results and unfinished downloads: step, size, age, last use."""
    from phipipe.cli import facts, tables

    rows = facts.stored(store_of_user().store)
    answers.give(rows) if as_json else echo(tables.stored(rows))


@cache.command("verify", epilog="Example:  phipipe cache verify")
@AS_JSON
def verify(as_json: bool) -> None:
    """Hash everything; put damage aside, to be built again when it is needed."""
    from phipipe.output import lists
    from phipipe.store import digests
    from phipipe.store.store import Store

    store = Store(settings_of_user().cache)  # says nothing itself: the findings are the answer
    findings = [str(finding) for finding in (*store.verify(), *digests.verify(store.root))]
    if as_json:
        answers.give(lists.CacheVerified(ok=not findings, findings=findings))
    for finding in () if as_json else findings:
        echo(finding)
    if findings:
        hint = "run the same commands again: what is needed is built anew"
        raise StoreError(f"{len(findings)} damaged in `{store.root}`, put aside", hint=hint)
    if not as_json:
        echo("everything intact")


@cache.command("gc", epilog="Example:  phipipe cache gc --budget 20 --dry-run")
@click.option(
    "--budget", required=True, type=Gib(min=0), metavar="GIB", help="Size to shrink to, in GiB."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, remove nothing.")
@AS_JSON
def collect(budget: float, dry_run: bool, as_json: bool) -> None:
    """Remove what was unused for longest, unfinished downloads too; never what a running build
    needs."""
    from phipipe.cli import facts, tables

    report = store_of_user().store.gc(int(budget * 2**30), dry_run=dry_run)
    row = facts.collected(report, dry_run)
    answers.give(row) if as_json else echo(tables.collected(row))
