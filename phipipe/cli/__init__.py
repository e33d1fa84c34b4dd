"""The command line: parse → call → print. Only this module, ``listings``, ``nightly``, ``upkeep``,
``answers`` and ``console`` print or exit.

Nothing heavy is imported before a command is chosen: ``phipipe --help`` costs little more than
click.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from phipipe.cli import answers, streams
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
    misused,
    note,
    planning_on,
    save,
    settings_of_user,
    store_of_user,
)
from phipipe.errors import Interrupted, PhipipeError, SourceError, StoreError
from phipipe.files.user_paths import Kind

if TYPE_CHECKING:
    from phipipe.settings import Settings
    from phipipe.store.store import Store

PACKAGES = "packages"  # where `run` puts them unless told otherwise
RECIPE = click.argument("recipe", type=UserPath())


def _accepted(context: click.Context, parameter: click.Parameter, package: Path) -> Path:
    """What a batch accepted last, where ``package`` is the folder of all versions of a build."""
    from phipipe.files import json_files

    latest = package / "latest"
    if not latest.is_file() or (package / "manifest.json").exists():
        return package
    version = json_files.read_bytes(latest, 4096).decode("utf-8", "replace").strip()
    return package / version if version.isprintable() and Path(version).name == version else package


_PACKAGE_PATH = UserPath(
    Kind.FOLDER, SourceError, hint="a package is a folder that `phipipe run RECIPE` writes"
)
PACKAGE = click.argument("package", type=_PACKAGE_PATH, callback=_accepted)
SETS = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe value, of all variants; repeatable.",
)
ONLY = click.option(
    "--only", multiple=True, metavar="NAME", help="Only this variant of a matrix; repeatable."
)


@command("phipipe run recipes/quickstart.yaml")
@RECIPE
@SETS
@ONLY
@click.option(
    "--out",
    default=PACKAGES,
    show_default=True,
    type=UserPath(Kind.NEW_FOLDER),
    help="Where packages go.",
)
@click.option(
    "--jobs", type=Count(min=1), help="Steps side by side; default from cores and memory."
)
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
    """Build, evaluate and package what a recipe describes. What is stored already is not done
    again."""
    from phipipe.cli import show
    from phipipe.plan import plans as planner

    settings, store = store_of_user()
    with planning_on(on):
        plans = planner.planned(recipe, sets, only, elsewhere=on is not None)
    if on is None:  # elsewhere, each step looks for a machine that is large enough
        _preflight(plans, store, settings, out)
    outcomes = _attempt("run", plans, store, settings, out, jobs, as_events, on)
    if as_json:
        answers.give([show.outcome_json(outcome) for outcome in outcomes])
    if len(outcomes) == 1 and not as_json and (words := show.outcome(outcomes[0])):
        echo(words)
    if len(outcomes) > 1:
        _board_of(outcomes, out, quiet=as_json)
    failures = [outcome for outcome in outcomes if outcome.error]
    for outcome in failures if len(outcomes) > 1 else ():
        note(f"{outcome.plan.build.name} failed:")
        complain(outcome.error)
    if failures:
        worst = max(failures, key=lambda outcome: outcome.error.exit_code).error
        raise click.exceptions.Exit(worst.exit_code) if len(outcomes) > 1 else worst


@command("phipipe plan recipes/quickstart.yaml --set precision=int8")
@RECIPE
@SETS
@ONLY
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with code 3 if `run` would refuse, for want of memory or disk.",
)
@AS_JSON
def plan(
    recipe: Path, sets: Sequence[str], only: Sequence[str], strict: bool, as_json: bool
) -> None:
    """Show what `run` would do: every step, cached or not, why, and what it needs."""
    from phipipe.cli import show
    from phipipe.errors import TargetError
    from phipipe.plan import plans as planner
    from phipipe.run import preflight
    from phipipe.run.bench import Bench

    settings, store = store_of_user()
    plans = planner.planned(recipe, sets, only)
    bench = Bench(store, settings, note)
    forecasts = [(planned, bench.foresee(planned)) for planned in plans]
    doubt = preflight.refusal(plans, store, settings, Path(PACKAGES))
    refusal = doubt if settings.preflight else None
    if as_json:
        answers.give(
            [show.plan_json(planned, forecast, refusal) for planned, forecast in forecasts]
        )
    for planned, forecast in () if as_json else forecasts:
        echo(show.plan(planned, forecast))
    if refusal and strict:
        raise TargetError(f"run would refuse: {refusal.message}", hint=refusal.hint)
    if doubt:
        note(f"{'run would refuse' if refusal else 'warning'}: {doubt.message}\n  → {doubt.hint}")


@command("phipipe validate recipes/*.yaml")
@click.argument("recipes", nargs=-1, required=True, type=UserPath())
@SETS
@AS_JSON
def validate(recipes: Sequence[Path], sets: Sequence[str], as_json: bool) -> None:
    """Check recipes: every problem with file, line and column. Touches neither models nor
    network."""
    from phipipe import failures as several
    from phipipe.package.figures import counted
    from phipipe.plan import targets

    found: list[tuple[Path, list[Any], PhipipeError | None]] = []
    for path in recipes:
        try:
            found.append((path, targets.checked(path, sets), None))
        except PhipipeError as error:
            found.append((path, [], error))
    for path, builds, wrong in () if as_json else found:
        if wrong is None:
            echo(f"{path}: valid, {counted(len(builds), 'build')}")
    if as_json:
        from phipipe.cli import validation

        answers.give([validation.told(*one) for one in found])
    if errors := [wrong for _, _, wrong in found if wrong]:
        raise several.as_one(errors)


@command("phipipe eval packages/quickstart --tokens 8192")
@PACKAGE
@click.option(
    "--text", type=UserPath(Kind.FILE, SourceError, "text"), help="Another evaluation text (UTF-8)."
)
@click.option("--tokens", type=Count(min=256), help="How many tokens of it.")
@click.option(
    "--source",
    type=UserPath(Kind.FOLDER, SourceError, "folder"),
    help="The original's folder; else from the cache, or its hub again.",
)
@AS_JSON
def eval_(
    package: Path, text: Path | None, tokens: int | None, source: Path | None, as_json: bool
) -> None:
    """Evaluate a finished package again: same metrics, other text or length, this machine."""
    from phipipe.cli import finished, show

    settings, store = store_of_user()
    planned = finished.plan(package, store, text=text, tokens=tokens, source=source)
    (outcome,) = _attempt("eval", [planned], store, settings, None)
    if outcome.error:
        raise outcome.error
    if as_json:
        answers.give(show.outcome_json(outcome))
    else:
        echo(show.outcome(outcome))


@command("phipipe measure packages/quickstart --out quickstart-measured.json")
@PACKAGE
@click.option(
    "--out", type=UserPath(Kind.NEW_FILE), help="The report; default NAME-measured.json, here."
)
@AS_JSON
def measure(package: Path, out: Path | None, as_json: bool) -> None:
    """Measure a package on the device it is for, which this machine must be: fidelity, speed,
    memory.

    Needs neither the original model nor its cache. `phipipe compare` puts the report in place of
    the figures that the build machine had emulated or could not take.
    """
    from phipipe.board import file
    from phipipe.cli import finished, show
    from phipipe.evaluate.speed import host
    from phipipe.package import figures

    settings, store = store_of_user()
    planned = finished.on_device(package)
    note(f"taking this machine for {planned.device.title}: {figures.host_words(host())}")
    (outcome,) = _attempt("measure", [planned], store, settings, None)
    if outcome.error:
        raise outcome.error
    text = file.dump([finished.report(package, outcome)])
    target = out or Path(f"{planned.build.name}-measured.json")
    save(target, text)
    if as_json:
        answers.give_text(text)
    else:
        echo(
            f"{show.outcome(outcome)}\n\nreport   {target}\ncompare  phipipe compare {package} "
            f"{target}"
        )


@command("phipipe compare packages/board-llamacpp-int4 packages/board-openvino-int4")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    type=UserPath(Kind.EITHER, SourceError),
    metavar="RUN|PACKAGE...",
)
@click.option(
    "--out",
    default="comparison",
    show_default=True,
    type=UserPath(Kind.NEW_FOLDER),
    help="Where the board goes.",
)
@AS_JSON
def compare(paths: Sequence[Path], out: Path, as_json: bool) -> None:
    """Make one board of finished packages and runs: table, board.json, board.md and board.html."""
    from phipipe.batch import boards
    from phipipe.board import file

    entries = boards.of_paths(paths)
    page = boards.write(entries, out, "Fidelity board")
    if as_json:
        answers.give_text(file.dump(entries))
    else:
        _show_board(entries, page)


@command("phipipe verify packages/quickstart")
@PACKAGE
@AS_JSON
def verify(package: Path, as_json: bool) -> None:
    """Check that a package is complete and unchanged, and that nothing in it runs or loads code.

    Every file's size and SHA-256, nothing added; kinds of files, settings and headers that phipipe
    writes, no others.
    """
    from phipipe.output import documents
    from phipipe.package import package as packages
    from phipipe.package.figures import counted

    findings = packages.verify(package)
    if as_json:
        told = [str(finding) for finding in findings]
        answers.give(documents.Verified(package=str(package), ok=not findings, findings=told))
    if findings:
        for finding in findings if not as_json else ():
            echo(str(finding))
        found = counted(len(findings), "finding")
        raise SourceError(
            f"`{package}` is not as phipipe packages it: {found}",
            hint="do not open it; build it again",
        )
    if not as_json:
        echo(f"{package}: complete and unchanged")


@command("phipipe chat packages/quickstart --prompt 'Tell me a story.'")
@PACKAGE
@click.option("--prompt", help="Answer this and end; without it, an interactive chat.")
@click.option("--system", help="A system message.")
@click.option("--tokens", default=256, show_default=True, type=Count(min=1), help="Longest answer.")
def chat(package: Path, prompt: str | None, system: str | None, tokens: int) -> None:
    """Talk to a package through its own runtime, greedily."""
    from phipipe.cli import finished

    sys.exit(
        finished.chat(
            package, settings_of_user(), note, prompt=prompt, system=system, tokens=tokens
        )
    )


@command("phipipe init my-recipe.yaml --device cpu-x86_64 --precision int4")
@click.argument("recipe", type=UserPath())
@click.option(
    "--device", default="cpu-x86_64", show_default=True, help="A device, or a device file of yours."
)
@click.option(
    "--precision",
    type=click.Choice(["int4", "int8", "fp16", "fp32"]),
    help="Default: what suits the device.",
)
@click.option("--backend", help="Default: what suits the device's first unit.")
@click.option(
    "--source",
    default="builtin:tiny-phi3",
    show_default=True,
    help="builtin:NAME, a folder, or OWNER/NAME[@REVISION].",
)
@AS_JSON
def init(
    recipe: Path,
    device: str,
    precision: str | None,
    backend: str | None,
    source: str,
    as_json: bool,
) -> None:
    """Write a commented starter recipe that validates and plans."""
    from phipipe.plan import starter

    made, notes = starter.write(
        recipe, device=device, precision=precision, backend=backend, source=source
    )
    for line in notes:
        note(f"note: {line}")
    if as_json:
        answers.give(made)
    else:
        echo(f"wrote {recipe}: {made.precision} with {made.backend} for {made.device}, {made.unit}")
        echo(
            "\n".join(
                f"{'next' if i == 0 else 'then'}: {command}" for i, command in enumerate(made.next)
            )
        )


def _preflight(plans: list[Any], store: Store, settings: Settings, out: Path) -> None:
    """Refuse what this machine surely cannot do."""
    from phipipe.run import preflight

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
    from phipipe.cli import show
    from phipipe.run import dispatch, events
    from phipipe.run.manner import Manner

    named, stream = [plan.build.name for plan in plans], sys.stderr if as_events else None
    with (
        show.listener(plans, sys.stderr, silent=as_events) as inner,
        events.recorded(store.root, command, named, inner, stream) as recorder,
    ):
        for plan in plans:
            recorder.advised(plan.build.name, plan.warnings)
        manner = Manner(out=out, jobs=jobs, engine=engine_of(on))
        outcomes = dispatch.attempt(plans, store, settings, recorder, manner)
        for done in outcomes:
            recorder.ended(done.plan.build.name, done.error, done.seconds, done.package)
    return outcomes


def _board_of(outcomes: list[Any], out: Path, quiet: bool) -> None:
    """The board of a matrix: beside the packages, in a folder named by the recipe."""
    from phipipe.batch import boards

    entries, name = boards.of_outcomes(outcomes), outcomes[0].plan.build.recipe.name
    try:
        page = boards.write(entries, out / name, name)
    except SourceError as error:  # variants may be evaluated on different texts on purpose
        note(f"no board: {error.message}")
        return
    if not quiet:
        _show_board(entries, page)
        if all(outcome.all_cached for outcome in outcomes):
            echo("everything was cached, nothing had to be done")


def _show_board(entries: Sequence[Any], page: Path) -> None:
    import shutil

    from phipipe.board import text as board_text

    echo(
        f"{board_text.table(entries, max(80, min(160, shutil.get_terminal_size((120, 24)).columns)))}"
    )
    said = "\n".join(board_text.advice(entries))
    echo(f"\n{said}\n\nboard    {page}\ncheck    phipipe verify PACKAGE")


def _stop(signum: int, _frame: object) -> NoReturn:
    raise Interrupted("stopped by SIGTERM", exit_code=128 + signum)


def _unexpected(error: Exception) -> PhipipeError:
    """What no command foresaw: the world's doing in a sentence, our own with a log."""
    from phipipe.cli import uncaught

    if known := uncaught.explained(error):
        complain(known)
        return known
    bug = PhipipeError(f"this is a bug in phipipe, please report it with {uncaught.log(error)}")
    note(f"error: {bug.message}")
    return bug


def _checked(code: int) -> int:
    """The exit code, after a look at whether standard output took everything."""
    trouble = streams.trouble()
    if trouble is None or code:
        return code
    complain(
        StoreError(
            f"standard output takes nothing more: {trouble.strerror}", hint="what was built is kept"
        )
    )
    return StoreError.exit_code


from phipipe.cli import listings, upkeep  # noqa: E402, F401 (commands that come after these)
from phipipe.cli import many as nightly  # noqa: E402, F401


def main() -> NoReturn:
    """Entry point: run the command line and exit with the failure's own code (``errors``)."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _stop)
    streams.prepare()
    answers.begin(sys.argv[1:])
    code = 0
    try:
        ended = cli.main(standalone_mode=False)
        code = ended if isinstance(ended, int) else 0  # what a command left by click's Exit
    except BaseException as error:  # noqa: BLE001 (every ending has an exit code and, with --json, a document)
        code = _failed(error)
    sys.exit(_checked(code))


def _failed(error: BaseException) -> int:
    """Say what ``error`` is, to people and to programs; its exit code."""
    from phipipe.output import documents

    if isinstance(error, PhipipeError):
        complain(error)
        told = documents.error_of(error)
    elif isinstance(error, click.Abort | KeyboardInterrupt):
        stopped = Interrupted(
            "stopped; what was finished is kept, the same command goes on from there"
        )
        note(stopped.message)
        told = documents.error_of(stopped)
    elif isinstance(error, click.ClickException):
        misused(error)
        context = getattr(error, "ctx", None)
        told = documents.usage_error(error.format_message(), context and context.command_path)
    elif isinstance(error, Exception):
        told = documents.error_of(_unexpected(error))
    else:
        raise error
    answers.fail(told)
    return told.code
