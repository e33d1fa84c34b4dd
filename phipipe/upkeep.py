"""Commands that keep the installation in order: schema, toolchains, cache, doctor, completion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phipipe.console import (
    AS_JSON,
    UserPath,
    cli,
    command,
    echo,
    note,
    print_file,
    print_json,
    save,
    settings_of_user,
    store_of_user,
)
from phipipe.report import counted
from phipipe.user_paths import Kind

if TYPE_CHECKING:
    from phipipe.events import Run

MAX_SCHEMA_BYTES = 16 * 2**20
MAX_GIB = 2.0**30  # no disk of anybody's


class _Gib(click.FloatRange):
    """A size: not negative, and a number that a disk can have."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no size.", param, ctx)
        return min(number, MAX_GIB)


GIB = _Gib(min=0)


@command("phipipe schema --write schemas/recipe.schema.json")
@click.option("--write", "target", type=UserPath(Kind.NEW_FILE), help="Write to this file instead of stdout.")
@click.option("--check", type=UserPath(Kind.FILE, missing="schema"), help="Fail if this file is not up to date.")
def schema(target: Path | None, check: Path | None) -> None:
    """Print the JSON schema of recipes, for editors' YAML language servers."""
    from phipipe import backends
    from phipipe import schema as schemas
    from phipipe.errors import RecipeError

    text = schemas.dump({name: backends.load(name).Options for name in backends.names()})
    if check is not None:
        if _content(check) != text.encode():
            raise RecipeError(f"`{check}` is out of date", hint=f"phipipe schema --write {check}")
    elif target is not None:
        save(target, text)
    else:
        print_file(text)


def _content(path: Path) -> bytes:
    from phipipe.errors import RecipeError

    try:
        with path.open("rb") as stream:
            return stream.read(MAX_SCHEMA_BYTES)
    except OSError as error:
        raise RecipeError(f"cannot read `{path}`: {error.strerror}") from None


@command("phipipe pin recipes/phi35-npu-int4.yaml")
@click.argument("recipe", type=UserPath())
@AS_JSON
def pin(recipe: Path, as_json: bool) -> None:
    """Write the commits that branches are at into a recipe; its comments stay. What is pinned is left alone."""
    import dataclasses

    from phipipe import pin as pins

    pinned = pins.pin(recipe)
    if as_json:
        print_json([dataclasses.asdict(one) for one in pinned])
        return
    for one in pinned:
        echo(f"{recipe}: {one.repo} {one.revision} → {one.commit}")
    if not pinned:
        echo(f"{recipe}: every repository is pinned already")


@cli.group(epilog="Example:  phipipe toolchain install onnxruntime")
def toolchain() -> None:
    """The isolated environments that backends run in."""


@toolchain.command("ls", epilog="Example:  phipipe toolchain ls")
@AS_JSON
def toolchain_ls(as_json: bool) -> None:
    """List toolchains: installed or not, size, path."""
    from phipipe import catalogue

    rows = catalogue.toolchains(settings_of_user())
    print_json(rows) if as_json else echo(catalogue.text(rows))


@toolchain.command("install", epilog="Example:  phipipe toolchain install onnxruntime --force")
@click.argument("names", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove it first, whatever its state.")
def toolchain_install(names: Sequence[str], force: bool) -> None:
    """Install toolchains now instead of on first use."""
    from phipipe import toolchain as toolchains

    for name in names:
        if force:
            toolchains.remove(name, settings_of_user(), note)
        installed = toolchains.ensure(name, settings_of_user(), note)
        echo(f"{name}: {counted(len(installed.packages), 'package')}")


@toolchain.command("path", epilog="Example:  $(phipipe toolchain path onnxruntime) -m pip list")
@click.argument("name")
def toolchain_path(name: str) -> None:
    """Print the Python of an installed toolchain."""
    from phipipe import toolchain as toolchains
    from phipipe.errors import ToolchainError

    installed = toolchains.installed(name, settings_of_user())
    if installed is None:
        raise ToolchainError(f"toolchain `{name}` is not installed", hint=f"phipipe toolchain install {name}")
    echo(str(installed.python))


@cli.group(epilog="Example:  phipipe cache gc --budget 20")
def cache() -> None:
    """What the cache holds, whether it is intact, and how to shrink it."""


@cache.command("ls", epilog="Example:  phipipe cache ls --json")
@AS_JSON
def cache_ls(as_json: bool) -> None:
    """List stored results and unfinished downloads: step, size, age, last use."""
    from phipipe import catalogue

    rows = catalogue.stored(store_of_user()[1])
    print_json(rows) if as_json else echo(catalogue.text(rows))


@cache.command("verify", epilog="Example:  phipipe cache verify")
def cache_verify() -> None:
    """Hash everything; put damage aside, to be built again when it is needed."""
    from phipipe import outside
    from phipipe.errors import StoreError

    store = store_of_user()[1]
    findings = [*store.verify(), *outside.verify(store.root)]
    for finding in findings:
        echo(str(finding))
    if findings:
        hint = "run the same commands again: what is needed is built anew"
        raise StoreError(f"{len(findings)} damaged in `{store.root}`, put aside", hint=hint)
    echo("everything intact")


@cache.command("gc", epilog="Example:  phipipe cache gc --budget 20 --dry-run")
@click.option("--budget", required=True, type=GIB, metavar="GIB", help="Size to shrink to, in GiB.")
@click.option("--dry-run", is_flag=True, help="Say what would go, remove nothing.")
@AS_JSON
def cache_gc(budget: float, dry_run: bool, as_json: bool) -> None:
    """Remove what was unused for longest, unfinished downloads too; never what a running build needs."""
    from phipipe import catalogue

    report = catalogue.collected(store_of_user()[1].gc(int(budget * 2**30), dry_run=dry_run))
    verb = "would free" if dry_run else "freed"
    print_json(report) if as_json else echo(f"{verb} {report['freed']}, {report['kept']} kept")


@cli.group(epilog="Example:  phipipe runs logs latest")
def runs() -> None:
    """What `run`, `batch`, `eval` and `measure` did: which steps, how long, how they ended."""


@runs.command("ls", epilog="Example:  phipipe runs ls --json")
@AS_JSON
def runs_ls(as_json: bool) -> None:
    """List runs, the newest first."""
    from phipipe import catalogue, events

    rows = [_run_row(run) for run in events.runs(settings_of_user().cache)]
    print_json(rows) if as_json else echo(catalogue.text([_cells(row) for row in rows]))


@runs.command("show", epilog="Example:  phipipe runs show latest")
@click.argument("run_id", metavar="ID")
@AS_JSON
def runs_show(run_id: str, as_json: bool) -> None:
    """Show a run's builds and steps; ID may be its beginning, or `latest`."""
    from phipipe import catalogue, events

    run = events.find(settings_of_user().cache, run_id)
    if as_json:
        print_json({**_run_row(run), "events": run.events})
        return
    echo(f"{run.id}  {run.command}, {run.state}\n")
    ends = ("step_finished", "step_failed", "build_finished")
    echo(catalogue.text([_cells(events.row(event)) for event in run.events if event["event"] in ends]))


@runs.command("logs", epilog="Example:  phipipe runs logs latest quantize")
@click.argument("run_id", metavar="ID")
@click.argument("step", required=False)
@AS_JSON
def runs_logs(run_id: str, step: str | None, as_json: bool) -> None:
    """Print a run's events in their order, of all steps or of one."""
    from phipipe import events

    for event in events.of_step(events.find(settings_of_user().cache, run_id), step):
        print_json(event, indent=None) if as_json else echo(events.line(event))


def _cells(row: Mapping[str, object]) -> dict[str, object]:
    """A row for people."""
    words = {name: ", ".join(value) if isinstance(value, list) else value for name, value in row.items()}
    return {name: "–" if value is None else value for name, value in words.items()}


def _run_row(run: Run) -> dict[str, object]:
    seconds = None if run.seconds is None else round(run.seconds, 1)
    told = {"id": run.id, "command": run.command, "started": run.started, "state": run.state}
    return {**told, "exit_code": run.exit_code, "seconds": seconds, "builds": list(run.builds)}


@command("phipipe explain M20")
@click.argument("name", metavar="ID", required=False)
@AS_JSON
def explain(name: str | None, as_json: bool) -> None:
    """Say what stands behind a rule, a fix-up or an exit code: why, since when, what to do. Without ID: all of them."""
    from dataclasses import asdict

    from phipipe import explain as explaining

    if name is None:
        print_json([asdict(e) for e in explaining.explanations().values()]) if as_json else echo(explaining.listing())
        return
    found = explaining.find(name)
    print_json(asdict(found)) if as_json else echo(explaining.text(found))


@command("phipipe doctor recipes/quickstart.yaml")
@click.argument("recipes", nargs=-1, type=click.Path(path_type=Path))
@AS_JSON
def doctor(recipes: Sequence[Path], as_json: bool) -> None:
    """Tell what this machine has and what is missing; of RECIPES, whether they could run here (exit code 1 if not)."""
    from dataclasses import asdict

    from phipipe import catalogue, checks

    settings = settings_of_user()
    rows, found = catalogue.doctor(settings), checks.machine(settings)
    found += checks.recipes(recipes, settings, found)
    if as_json:
        print_json(rows | {"checks": [asdict(check) for check in found]})
    else:
        echo(f"{catalogue.text(rows)}\nchecks\n{checks.text(found)}")
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
