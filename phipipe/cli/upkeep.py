"""Commands that keep the installation in order: schema, toolchains, cache, doctor, completion."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phipipe.cli import answers
from phipipe.cli.console import (
    AS_JSON,
    UserPath,
    cli,
    command,
    echo,
    note,
    save,
    settings_of_user,
    store_of_user,
)
from phipipe.errors import RecipeError
from phipipe.files.user_paths import Kind, problem, shown
from phipipe.package.figures import counted

if TYPE_CHECKING:
    from phipipe.output.lists import SchemaFile
    from phipipe.run.past_runs import Run

MAX_SCHEMA_BYTES = 16 * 2**20
MAX_GIB = 2.0**30  # no disk of anybody's


class _Gib(click.FloatRange):
    """A size: not negative, and a number that a disk can have."""

    name = "number of GiB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no size.", param, ctx)
        return min(number, MAX_GIB)


GIB = _Gib(min=0)


@command("phipipe schema --write schemas/recipe.schema.json")
@click.argument("name", default="recipe", metavar="[NAME]")
@click.option("--write", "target", type=UserPath(), help="Write to this file instead of stdout.")
@click.option("--check", type=UserPath(), help="Fail if this file is not up to date.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="All schemas; --write and --check then name the folder `schemas`.",
)
@AS_JSON
def schema(name: str, target: Path | None, check: Path | None, every: bool, as_json: bool) -> None:
    """Print a JSON schema: of recipes, for editors' YAML language servers, or of what a command
    prints with --json.

    NAME is `recipe` (the default), or a command such as `plan` or `cache-ls`.
    """
    from phipipe.cli import schemas

    if target is None and check is None:
        answers.give_text(schemas.bundle() if every else schemas.text(name))
        return
    files = schemas.files() if every else {Path(): schemas.text(name)}
    rows = [_schema_file(path, text, target, check) for path, text in files.items()]
    if as_json:
        answers.give(rows)
    if stale := [row.path for row in rows if not row.fresh]:
        again = (
            f"phipipe schema --all --write {check}"
            if every
            else f"phipipe schema {name} --write {check}"
        )
        raise RecipeError(f"{', '.join(f'`{path}`' for path in stale)}: out of date", hint=again)


def _schema_file(inner: Path, text: str, target: Path | None, check: Path | None) -> SchemaFile:
    """Write the schema ``text``, or compare it with what is there."""
    from phipipe.output.lists import SchemaFile

    path = (target or check or Path()) / inner
    if check is not None:
        return SchemaFile(path=str(path), fresh=_content(path) == text.encode())
    if inner.name and not problem(path.parent, Kind.NEW_FOLDER):
        with contextlib.suppress(OSError):  # `save` says why
            path.parent.mkdir(parents=True, exist_ok=True)
    save(path, text)
    return SchemaFile(path=str(path), fresh=True)


def _content(path: Path) -> bytes:
    if odd := problem(path, Kind.FILE):
        raise RecipeError(f"cannot read `{shown(path)}`: it {odd}", hint="give another path")
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_SCHEMA_BYTES)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        words = (
            f"there is no schema at `{path}`"
            if missing
            else f"cannot read `{path}`: {error.strerror}"
        )
        raise RecipeError(words, hint="phipipe schema --write FILE") from None


@command("phipipe pin recipes/phi35-npu-int4.yaml")
@click.argument("recipe", type=UserPath())
@AS_JSON
def pin(recipe: Path, as_json: bool) -> None:
    """Write the commits that branches are at into a recipe; its comments stay. What is pinned is
    left alone."""
    from phipipe.hub import pin as pins
    from phipipe.output import documents

    pinned = pins.pin(recipe)
    if as_json:
        answers.give(
            [
                documents.Pinned(repo=one.repo, revision=one.revision, commit=one.commit)
                for one in pinned
            ]
        )
        return
    for one in pinned:
        echo(f"{recipe}: {one.repo} {one.revision} → {one.commit}")
    if not pinned:
        named = pins.names_any(recipe)
        echo(
            f"{recipe}: {'every repository is pinned already' if named else 'it names no repository of a hub'}"
        )


@cli.group(epilog="Example:  phipipe toolchain install onnxruntime")
def toolchain() -> None:
    """The isolated environments that backends run in."""


@toolchain.command("ls", epilog="Example:  phipipe toolchain ls")
@AS_JSON
def toolchain_ls(as_json: bool) -> None:
    """List toolchains: installed or not, size, path."""
    from phipipe.cli import listing_text, tables

    rows = tables.toolchains(settings_of_user())
    answers.give(rows) if as_json else echo(listing_text.toolchains(rows))


@toolchain.command("install", epilog="Example:  phipipe toolchain install onnxruntime --force")
@click.argument("names", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove it first, whatever its state.")
@AS_JSON
def toolchain_install(names: Sequence[str], force: bool, as_json: bool) -> None:
    """Install toolchains now instead of on first use."""
    from phipipe.cli import tables
    from phipipe.toolchains import environments as toolchains

    for name in names:
        if force:
            toolchains.remove(name, settings_of_user(), note)
        installed = toolchains.ensure(name, settings_of_user(), note)
        if not as_json:
            echo(f"{name}: {counted(len(installed.packages), 'package')}")
    if as_json:
        answers.give([tables.toolchain_row(name, settings_of_user()) for name in names])


@toolchain.command("path", epilog="Example:  $(phipipe toolchain path onnxruntime) -m pip list")
@click.argument("name")
@AS_JSON
def toolchain_path(name: str, as_json: bool) -> None:
    """Print the Python of an installed toolchain."""
    from phipipe.cli import tables
    from phipipe.errors import ToolchainError

    found = tables.toolchain_row(name, settings_of_user())
    if not found.installed:
        raise ToolchainError(
            f"toolchain `{name}` is not installed", hint=f"phipipe toolchain install {name}"
        )
    answers.give(found) if as_json else echo(str(found.python))


@cli.group(epilog="Example:  phipipe cache gc --budget 20")
def cache() -> None:
    """What the cache holds, whether it is intact, and how to shrink it."""


@cache.command("ls", epilog="Example:  phipipe cache ls --json")
@AS_JSON
def cache_ls(as_json: bool) -> None:
    """List stored results and unfinished downloads: step, size, age, last use."""
    from phipipe.cli import listing_text, tables

    rows = tables.stored(store_of_user()[1])
    answers.give(rows) if as_json else echo(listing_text.stored(rows))


@cache.command("verify", epilog="Example:  phipipe cache verify")
@AS_JSON
def cache_verify(as_json: bool) -> None:
    """Hash everything; put damage aside, to be built again when it is needed."""
    from phipipe.errors import StoreError
    from phipipe.output import lists
    from phipipe.store import digests
    from phipipe.store.store import Store

    store = Store(
        settings_of_user().cache
    )  # which says nothing itself: the findings are the answer
    findings = [*store.verify(), *digests.verify(store.root)]
    if as_json:
        answers.give(
            lists.CacheVerified(ok=not findings, findings=[str(finding) for finding in findings])
        )
    for finding in () if as_json else findings:
        echo(str(finding))
    if findings:
        hint = "run the same commands again: what is needed is built anew"
        raise StoreError(f"{len(findings)} damaged in `{store.root}`, put aside", hint=hint)
    if not as_json:
        echo("everything intact")


@cache.command("gc", epilog="Example:  phipipe cache gc --budget 20 --dry-run")
@click.option("--budget", required=True, type=GIB, metavar="GIB", help="Size to shrink to, in GiB.")
@click.option("--dry-run", is_flag=True, help="Say what would go, remove nothing.")
@AS_JSON
def cache_gc(budget: float, dry_run: bool, as_json: bool) -> None:
    """Remove what was unused for longest, unfinished downloads too; never what a running build
    needs."""
    from phipipe.cli import listing_text, tables

    done = tables.collected(store_of_user()[1].gc(int(budget * 2**30), dry_run=dry_run), dry_run)
    answers.give(done) if as_json else echo(listing_text.collected(done))


@cli.group(epilog="Example:  phipipe runs logs latest")
def runs() -> None:
    """What `run`, `batch`, `eval` and `measure` did: which steps, how long, how they ended."""


@runs.command("ls", epilog="Example:  phipipe runs ls --json")
@AS_JSON
def runs_ls(as_json: bool) -> None:
    """List runs, the newest first."""
    from phipipe.cli import listing_text
    from phipipe.output import lists
    from phipipe.run import past_runs

    rows = [lists.Run(**_of_run(run)) for run in past_runs.runs(settings_of_user().cache)]
    answers.give(rows) if as_json else echo(listing_text.runs(rows))


@runs.command("show", epilog="Example:  phipipe runs show latest")
@click.argument("run_id", metavar="ID")
@AS_JSON
def runs_show(run_id: str, as_json: bool) -> None:
    """Show a run's builds and steps; ID may be its beginning, or `latest`."""
    from phipipe.cli import listing_text
    from phipipe.output import lists
    from phipipe.run import event_words, past_runs

    run = past_runs.find(settings_of_user().cache, run_id)
    if as_json:
        answers.give(lists.RunDetails(**_of_run(run), events=[dict(event) for event in run.events]))
        return
    echo(f"{run.id}  {run.command}, {run.state}\n")
    ends = ("step_finished", "step_failed", "build_finished")
    echo(
        listing_text.table(
            [listing_text.cells(event_words.row(e)) for e in run.events if e["event"] in ends]
        )
    )


@runs.command("logs", epilog="Example:  phipipe runs logs latest quantize")
@click.argument("run_id", metavar="ID")
@click.argument("step", required=False)
@AS_JSON
def runs_logs(run_id: str, step: str | None, as_json: bool) -> None:
    """Print a run's events in their order, of all steps or of one."""
    from phipipe.run import event_words, past_runs

    found = past_runs.of_step(past_runs.find(settings_of_user().cache, run_id), step)
    if as_json:
        answers.give(found)
    for event in () if as_json else found:
        echo(event_words.line(event))


def _of_run(run: Run) -> dict[str, Any]:
    """The fields of ``output_lists.Run``."""
    seconds = None if run.seconds is None else round(run.seconds, 1)
    told = {"id": run.id, "command": run.command, "started": run.started, "state": run.state}
    return {**told, "exit_code": run.exit_code, "seconds": seconds, "builds": list(run.builds)}


@command("phipipe explain M20")
@click.argument("name", metavar="ID", required=False)
@AS_JSON
def explain(name: str | None, as_json: bool) -> None:
    """Say what stands behind a rule, a fix-up or an exit code: why, since when, what to do. Without
    ID: all of them."""
    from phipipe.cli import explain as explaining

    if name is None:
        every = list(explaining.explanations().values())
        answers.give(every) if as_json else echo(explaining.listing())
        return
    found = explaining.find(name)
    answers.give(found) if as_json else echo(explaining.text(found))


@command("phipipe doctor recipes/quickstart.yaml")
@click.argument("recipes", nargs=-1, type=UserPath())
@AS_JSON
def doctor(recipes: Sequence[Path], as_json: bool) -> None:
    """Tell what this machine has and what is missing; of RECIPES, whether they could run here (exit
    code 1 if not)."""
    from dataclasses import asdict

    from phipipe.cli import doctor as checks
    from phipipe.cli import listing_text, tables
    from phipipe.output import lists

    settings = settings_of_user()
    found = list(checks.machine(settings))
    found += checks.recipes(recipes, settings, found)
    told = tables.doctor(settings, [lists.Check(**asdict(check)) for check in found])
    answers.give(told) if as_json else echo(
        f"{listing_text.doctor(told)}\nchecks\n{checks.text(found)}"
    )
    if not checks.fit_to_run(found):
        raise click.exceptions.Exit(1)


@command('eval "$(phipipe completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None  # the choices above
    echo(made(cli, {}, "phipipe", "_PHIPIPE_COMPLETE").source())
