"""The command line: parse → call → print. Only this module, ``nightly``, ``upkeep`` and
``console`` print or exit.

Nothing heavy is imported before a command is chosen: ``phipipe --help`` costs little more than click.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from phipipe import __version__
from phipipe.console import (
    AS_JSON,
    LOG_FORMAT,
    ON,
    Listing,
    cli,
    command,
    complain,
    echo,
    engine_of,
    note,
    planning_on,
    print_json,
    settings_of_user,
    store_of_user,
)
from phipipe.errors import Interrupted, PhipipeError

if TYPE_CHECKING:
    from phipipe.settings import Settings
    from phipipe.store import Store

PACKAGES = "packages"  # where `run` puts them unless told otherwise
RECIPE = click.argument("recipe", type=click.Path(path_type=Path))


def _accepted(context: click.Context, parameter: click.Parameter, package: Path) -> Path:
    """What a batch accepted last, where ``package`` is the folder of all versions of a build."""
    from phipipe import json_files

    latest = package / "latest"
    if not latest.is_file() or (package / "manifest.json").exists():
        return package
    version = json_files.read_bytes(latest, 4096).decode("utf-8", "replace").strip()
    return package / version if version.isprintable() and Path(version).name == version else package


PACKAGE = click.argument("package", type=click.Path(path_type=Path), callback=_accepted)
SETS = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a recipe value, of all variants; repeatable."
)
ONLY = click.option("--only", multiple=True, metavar="NAME", help="Only this variant of a matrix; repeatable.")


@command("phipipe run recipes/quickstart.yaml")
@RECIPE
@SETS
@ONLY
@click.option("--out", default=PACKAGES, show_default=True, type=click.Path(path_type=Path), help="Where packages go.")
@click.option("--jobs", type=click.IntRange(min=1), help="Steps side by side; default from cores and memory.")
@ON
@LOG_FORMAT
@AS_JSON
def run(
    on: str | None,
    recipe: Path,
    sets: Sequence[str],
    only: Sequence[str],
    out: Path,
    jobs: int | None,
    as_events: bool,
    as_json: bool,
) -> None:
    """Build, evaluate and package what a recipe describes. What is stored already is not done again."""
    from phipipe import show

    settings, store = store_of_user()
    with planning_on(on):
        plans = _plans(recipe, sets, only, elsewhere=on is not None)
    if on is None:  # elsewhere, each step looks for a machine that is large enough
        _preflight(plans, store, settings, out)
    outcomes = _attempt("run", plans, store, settings, out, jobs, as_events, on)
    if as_json:
        print_json([show.outcome_json(outcome) for outcome in outcomes])
    for outcome in outcomes if len(outcomes) == 1 and not as_json else ():
        echo(show.outcome(outcome))
    if len(outcomes) > 1:
        _board_of(outcomes, out, quiet=as_json)
    failures = [outcome for outcome in outcomes if outcome.error]
    for outcome in failures if len(outcomes) > 1 else ():
        note(f"{outcome.plan.build.name} failed:")
        complain(outcome.error)
    if failures:
        raise click.exceptions.Exit(failures[0].error.exit_code) if len(outcomes) > 1 else failures[0].error


@command("phipipe plan recipes/quickstart.yaml --set precision=int8")
@RECIPE
@SETS
@ONLY
@AS_JSON
def plan(recipe: Path, sets: Sequence[str], only: Sequence[str], as_json: bool) -> None:
    """Show what `run` would do: every step, cached or not, why, and what it needs."""
    from phipipe import preflight, show
    from phipipe.executor import Bench

    settings, store = store_of_user()
    plans = _plans(recipe, sets, only)
    for planned in plans:
        forecast = Bench(store, settings, note).foresee(planned)
        if as_json:
            print_json(show.plan_json(planned, forecast))
        else:
            echo(show.plan(planned, forecast))
    if refusal := preflight.refusal(plans, store, settings, Path(PACKAGES)):
        note(f"run would refuse: {refusal.message}\n  → {refusal.hint}")


@command("phipipe validate recipes/*.yaml")
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@SETS
@AS_JSON
def validate(recipes: Sequence[Path], sets: Sequence[str], as_json: bool) -> None:
    """Check recipes: every problem with file, line and column. Touches neither models nor network."""
    from phipipe.report import counted

    errors: list[PhipipeError] = []
    rows = []
    for path in recipes:
        try:
            builds = _load(path, sets)
        except PhipipeError as error:
            errors.append(error)
            rows.append({"recipe": str(path), "ok": False, "error": error.message})
        else:
            rows.append({"recipe": str(path), "ok": True, "builds": [b.name for b in builds]})
            if not as_json:
                echo(f"{path}: valid, {counted(len(builds), 'build')}")
    if as_json:
        print_json(rows)
    if errors:
        for other in errors[:-1]:
            complain(other)
        raise errors[-1]


@command("phipipe eval packages/quickstart --tokens 8192")
@PACKAGE
@click.option("--text", type=click.Path(path_type=Path), help="Another evaluation text (UTF-8).")
@click.option("--tokens", type=click.IntRange(min=256), help="How many tokens of it.")
@click.option(
    "--source", type=click.Path(path_type=Path), help="The original's folder; else from the cache, or its hub again."
)
@AS_JSON
def eval_(package: Path, text: Path | None, tokens: int | None, source: Path | None, as_json: bool) -> None:
    """Evaluate a finished package again: same metrics, other text or length, this machine."""
    from phipipe import again, show

    settings, store = store_of_user()
    planned = again.plan(package, store, text=text, tokens=tokens, source=source)
    (outcome,) = _attempt("eval", [planned], store, settings, None)
    if outcome.error:
        raise outcome.error
    if as_json:
        print_json(show.outcome_json(outcome))
    else:
        echo(show.outcome(outcome))


@command("phipipe measure packages/quickstart --out quickstart-measured.json")
@PACKAGE
@click.option("--out", type=click.Path(path_type=Path), help="The report; default NAME-measured.json, here.")
@AS_JSON
def measure(package: Path, out: Path | None, as_json: bool) -> None:
    """Measure a package on the device it is for, which this machine must be: fidelity, speed, memory.

    Needs neither the original model nor its cache. `phipipe compare` puts the report in place of the figures
    that the build machine had emulated or could not take.
    """
    from phipipe import again, board, show
    from phipipe.measure import host

    settings, store = store_of_user()
    planned = again.on_device(package)
    note(f"taking this machine for {planned.device.title}: {board.host_words(host())}")
    (outcome,) = _attempt("measure", [planned], store, settings, None)
    if outcome.error:
        raise outcome.error
    text = board.dump([again.report(package, outcome)])
    target = out or Path(f"{planned.build.name}-measured.json")
    target.write_bytes(text.encode())
    if as_json:
        click.echo(text, nl=False)
    else:
        echo(f"{show.outcome(outcome)}\n\nreport   {target}\ncompare  phipipe compare {package} {target}")


@command("phipipe compare packages/board-llamacpp-int4 packages/board-openvino-int4")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN|PACKAGE...")
@click.option(
    "--out", default="comparison", show_default=True, type=click.Path(path_type=Path), help="Where the board goes."
)
@AS_JSON
def compare(paths: Sequence[Path], out: Path, as_json: bool) -> None:
    """Make one board of finished packages and runs: table, board.json, board.md and board.html."""
    from phipipe import board, comparison

    entries = comparison.of_paths(paths)
    page = comparison.write(entries, out, "Fidelity board")
    if as_json:
        click.echo(board.dump(entries), nl=False)
    else:
        _show_board(entries, page)


@command("phipipe verify packages/quickstart")
@PACKAGE
@AS_JSON
def verify(package: Path, as_json: bool) -> None:
    """Check that a package is complete and unchanged, and that nothing in it runs or loads code.

    Every file's size and SHA-256, nothing added; kinds of files, settings and headers that phipipe writes, no others.
    """
    from phipipe import package as packages
    from phipipe.errors import SourceError

    findings = packages.verify(package)
    if as_json:
        print_json({"package": str(package), "ok": not findings, "findings": [str(f) for f in findings]})
    if findings:
        for finding in findings if not as_json else ():
            echo(str(finding))
        count = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"
        raise SourceError(f"`{package}` is not as phipipe packages it: {count}", hint="do not open it; build it again")
    if not as_json:
        echo(f"{package}: complete and unchanged")


@command("phipipe chat packages/quickstart --prompt 'Tell me a story.'")
@PACKAGE
@click.option("--prompt", help="Answer this and end; without it, an interactive chat.")
@click.option("--system", help="A system message.")
@click.option("--tokens", default=256, show_default=True, type=click.IntRange(min=1), help="Longest answer.")
def chat(package: Path, prompt: str | None, system: str | None, tokens: int) -> None:
    """Talk to a package through its own runtime, greedily."""
    from phipipe import again

    sys.exit(again.chat(package, settings_of_user(), note, prompt=prompt, system=system, tokens=tokens))


@command("phipipe init my-recipe.yaml --device cpu-x86_64 --precision int4")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--device", default="cpu-x86_64", show_default=True)
@click.option("--precision", default="int4", show_default=True, type=click.Choice(["int4", "int8", "fp16", "fp32"]))
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option(
    "--source", default="builtin:tiny-phi3", show_default=True, help="builtin:NAME, a folder, or OWNER/REPO@COMMIT."
)
def init(recipe: Path, device: str, precision: str, backend: str, source: str) -> None:
    """Write a commented starter recipe that validates and plans."""
    from phipipe import starter

    starter.write(recipe, device=device, precision=precision, backend=backend, source=source)
    echo(f"wrote {recipe}\nnext: phipipe plan {recipe}")


@cli.group(cls=Listing, invoke_without_command=True, epilog="Example:  phipipe devices show intel-npu")
@AS_JSON
@click.pass_context
def devices(context: click.Context, as_json: bool) -> None:
    """List target devices; `show NAME` for one."""
    if context.invoked_subcommand is None:
        from phipipe import catalogue

        _show_rows(catalogue.devices(), as_json)


@devices.command("show", epilog="Example:  phipipe devices show intel-npu")
@click.argument("name")
@AS_JSON
def devices_show(name: str, as_json: bool) -> None:
    """Show a device: units, precisions, memory, which backends fit, where to start, sources."""
    from phipipe import catalogue

    _show_rows(catalogue.device(name), as_json)


@cli.group(cls=Listing, invoke_without_command=True, epilog="Example:  phipipe backends show onnxruntime")
@AS_JSON
@click.pass_context
def backends(context: click.Context, as_json: bool) -> None:
    """List backends; `show NAME` for one."""
    if context.invoked_subcommand is None:
        from phipipe import catalogue

        _show_rows(catalogue.backends(), as_json)


@backends.command("show", epilog="Example:  phipipe backends show onnxruntime")
@click.argument("name")
@AS_JSON
def backends_show(name: str, as_json: bool) -> None:
    """Show a backend: precisions per unit, and every `quantize:` option."""
    from phipipe import catalogue

    _show_rows(catalogue.backend(name), as_json)


def _show_rows(rows: Any, as_json: bool) -> None:
    from phipipe import catalogue

    above = click.get_current_context().parent
    asked = as_json or bool(above and above.params.get("as_json"))  # `devices --json NAME` as well
    print_json(rows) if asked else echo(catalogue.text(rows))


def _load(path: Path, sets: Sequence[str], only: Sequence[str] = ()) -> list[Any]:
    from phipipe import backends, recipe

    return recipe.load(path, sets=sets, only=only, options=backends.OptionsOf())


def _plans(path: Path, sets: Sequence[str], only: Sequence[str], elsewhere: bool = False) -> list[Any]:
    """Plans of all builds; nothing starts before every one of them is known to be possible."""
    from phipipe import plan as planner

    return [planner.prepare(build, elsewhere=elsewhere) for build in _load(path, sets, only)]


def _preflight(plans: list[Any], store: Store, settings: Settings, out: Path) -> None:
    """Refuse what this machine surely cannot do."""
    from phipipe import preflight

    refusal = preflight.refusal(plans, store, settings, out)
    if refusal is None:
        return
    if settings.preflight:
        raise refusal
    note(f"warning: {refusal.message}")


def _attempt(
    command: str,
    plans: list[Any],
    store: Store,
    settings: Settings,
    out: Path | None,
    jobs: int | None = None,
    as_events: bool = False,
    on: str | None = None,
) -> list[Any]:
    from phipipe import events, schedule, show

    named, stream = [plan.build.name for plan in plans], sys.stderr if as_events else None
    with (
        show.listener(plans, sys.stderr, silent=as_events) as inner,
        events.recorded(store.root, command, named, inner, stream) as recorder,
    ):
        outcomes = schedule.attempt(plans, store, settings, recorder, out, jobs, engine=engine_of(on))
        for done in outcomes:
            recorder.ended(done.plan.build.name, done.error, done.seconds, done.package)
    return outcomes


def _board_of(outcomes: list[Any], out: Path, quiet: bool) -> None:
    """The board of a matrix: beside the packages, in a folder named by the recipe."""
    from phipipe import comparison
    from phipipe.errors import SourceError

    entries, name = comparison.of_outcomes(outcomes), outcomes[0].plan.build.recipe.name
    try:
        page = comparison.write(entries, out / name, name)
    except SourceError as error:  # variants may be evaluated on different texts on purpose
        note(f"no board: {error.message}")
        return
    if not quiet:
        _show_board(entries, page)
        if all(outcome.all_cached for outcome in outcomes):
            echo("everything was cached, nothing had to be done")


def _show_board(entries: Sequence[Any], page: Path) -> None:
    import shutil

    from phipipe import board, board_text

    echo(f"\n{board_text.table(entries, max(80, min(160, shutil.get_terminal_size((120, 24)).columns)))}")
    echo(f"\n{board.answer(entries)}\n\nboard    {page}\ncheck    phipipe verify PACKAGE")


def _stop(signum: int, _frame: object) -> NoReturn:
    raise Interrupted("stopped by SIGTERM", exit_code=128 + signum)


def _bug() -> int:
    """A traceback reaches the user only as the path of a file."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="phipipe-bug-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(f"phipipe {__version__}, Python {sys.version}\n\n{traceback.format_exc()}")
    click.echo(f"error: this is a bug in phipipe, please report it with {log.name}", err=True)
    return 70


from phipipe import nightly as nightly  # noqa: E402 (its commands come after those above)
from phipipe import upkeep as upkeep  # noqa: E402


def main() -> NoReturn:
    """Entry point: run the command line and exit with the failure's own code (``errors``)."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _stop)
    code = 0
    try:
        ended = cli.main(standalone_mode=False)
        code = ended if isinstance(ended, int) else 0  # what a command left by click's Exit
    except PhipipeError as error:
        complain(error)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; what was finished is kept, the same command goes on from there", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = 2
    except BrokenPipeError:  # the reader of our output went away (| head)
        sys.stderr.close()
    except Exception:  # noqa: BLE001 (the last resort, exit code 70)
        code = _bug()
    sys.exit(code)
