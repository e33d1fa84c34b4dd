"""The command line: parse → call → print. The only place that prints or exits.

Nothing heavy is imported before a command is chosen: ``phipipe --help`` costs little more than click.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from phipipe import __version__
from phipipe.errors import Interrupted, PhipipeError

if TYPE_CHECKING:
    from phipipe.settings import Settings
    from phipipe.store import Store

RECIPE = click.argument("recipe", type=click.Path(path_type=Path))
PACKAGE = click.argument("package", type=click.Path(path_type=Path))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print data as JSON on stdout.")
SETS = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a recipe value; repeatable.")
ONLY = click.option("--only", multiple=True, metavar="NAME", help="Only this variant of a matrix; repeatable.")


class Group(click.Group):
    """Commands in the order a user meets them, and a suggestion for a mistyped one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.commands, 1)
            guess = f" Did you mean `{close[0]}`?" if close else ""
            raise click.UsageError(f"{error.message}{guess}", ctx) from None


def command(example: str) -> Callable[[Callable[..., None]], click.Command]:
    """A subcommand whose ``--help`` ends with an example."""

    def register(function: Callable[..., None]) -> click.Command:
        name = function.__name__.rstrip("_")
        return cli.command(name, epilog=f"Example:  {example}")(function)

    return register


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="phipipe")
def cli() -> None:
    """One recipe in, one verified artifact out: small language models for edge devices."""


@command("phipipe run recipes/quickstart.yaml")
@RECIPE
@SETS
@ONLY
@click.option(
    "--out", default="packages", show_default=True, type=click.Path(path_type=Path), help="Where packages go."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Steps side by side; default from cores and memory.")
@AS_JSON
def run(recipe: Path, sets: Sequence[str], only: Sequence[str], out: Path, jobs: int | None, as_json: bool) -> None:
    """Build, evaluate and package what a recipe describes. What is stored already is not done again."""
    from phipipe import show

    settings, store = _store()
    outcomes = _attempt(_plans(recipe, sets, only), store, settings, out, jobs)
    if as_json:
        _print_json([show.outcome_json(outcome) for outcome in outcomes])
    else:
        for outcome in outcomes:
            _echo(show.outcome(outcome))
    failures = [outcome for outcome in outcomes if outcome.error]
    for outcome in failures if len(outcomes) > 1 else ():
        _note(f"{outcome.plan.build.name} failed:")
        _complain(outcome.error)
    if failures:
        raise click.exceptions.Exit(failures[0].error.exit_code) if len(outcomes) > 1 else failures[0].error


@command("phipipe plan recipes/quickstart.yaml --set precision=int8")
@RECIPE
@SETS
@ONLY
@AS_JSON
def plan(recipe: Path, sets: Sequence[str], only: Sequence[str], as_json: bool) -> None:
    """Show what `run` would do: every step, cached or not, why, and what it needs."""
    from phipipe import show
    from phipipe.executor import Bench

    settings, store = _store()
    for planned in _plans(recipe, sets, only):
        forecast = Bench(store, settings, _note).foresee(planned)
        if as_json:
            _print_json(show.plan_json(planned, forecast))
        else:
            _echo(show.plan(planned, forecast))


@command("phipipe validate recipes/*.yaml")
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@SETS
@AS_JSON
def validate(recipes: Sequence[Path], sets: Sequence[str], as_json: bool) -> None:
    """Check recipes: every problem with file, line and column. Touches neither models nor network."""
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
                _echo(f"{path}: valid, {len(builds)} build{'s' * (len(builds) != 1)}")
    if as_json:
        _print_json(rows)
    if errors:
        for other in errors[:-1]:
            _complain(other)
        raise errors[-1]


@command("phipipe eval packages/quickstart --tokens 8192")
@PACKAGE
@click.option("--text", type=click.Path(path_type=Path), help="Another evaluation text (UTF-8).")
@click.option("--tokens", type=click.IntRange(min=256), help="How many tokens of it.")
@click.option(
    "--source", type=click.Path(path_type=Path), help="The original checkpoint, if the cache no longer has it."
)
@AS_JSON
def eval_(package: Path, text: Path | None, tokens: int | None, source: Path | None, as_json: bool) -> None:
    """Evaluate a finished package again: same metrics, other text or length, this machine."""
    from phipipe import again, show

    settings, store = _store()
    planned = again.plan(package, store, text=text, tokens=tokens, source=source)
    (outcome,) = _attempt([planned], store, settings, None)
    if outcome.error:
        raise outcome.error
    if as_json:
        _print_json(show.outcome_json(outcome))
    else:
        _echo(show.outcome(outcome))


@command("phipipe verify packages/quickstart")
@PACKAGE
@AS_JSON
def verify(package: Path, as_json: bool) -> None:
    """Check that a package is complete and unchanged: every file's size and SHA-256, and nothing added."""
    from phipipe import package as packages
    from phipipe.errors import SourceError

    findings = packages.verify(package)
    if as_json:
        _print_json({"package": str(package), "ok": not findings, "findings": [str(f) for f in findings]})
    if findings:
        for finding in findings if not as_json else ():
            _echo(str(finding))
        raise SourceError(f"`{package}` is not as it was packaged: {len(findings)} finding(s)", hint="build it again")
    if not as_json:
        _echo(f"{package}: complete and unchanged")


@command("phipipe chat packages/quickstart --prompt 'Tell me a story.'")
@PACKAGE
@click.option("--prompt", help="Answer this and end; without it, an interactive chat.")
@click.option("--system", help="A system message.")
@click.option("--tokens", default=256, show_default=True, type=click.IntRange(min=1), help="Longest answer.")
def chat(package: Path, prompt: str | None, system: str | None, tokens: int) -> None:
    """Talk to a package through its own runtime, greedily."""
    from phipipe import again

    sys.exit(again.chat(package, _settings(), _note, prompt=prompt, system=system, tokens=tokens))


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
    _echo(f"wrote {recipe}\nnext: phipipe plan {recipe}")


@command("phipipe schema --write schemas/recipe.schema.json")
@click.option("--write", "target", type=click.Path(path_type=Path), help="Write to this file instead of stdout.")
@click.option("--check", type=click.Path(path_type=Path), help="Fail if this file is not up to date.")
def schema(target: Path | None, check: Path | None) -> None:
    """Print the JSON schema of recipes, for editors' YAML language servers."""
    from phipipe import backends
    from phipipe import schema as schemas
    from phipipe.errors import RecipeError

    text = schemas.dump({name: backends.load(name).Options for name in backends.names()})
    if check is not None:
        if check.read_text("utf-8") != text:
            raise RecipeError(f"`{check}` is out of date", hint=f"phipipe schema --write {check}")
    elif target is not None:
        target.write_text(text, "utf-8")
    else:
        click.echo(text, nl=False)


@command("phipipe devices intel-npu")
@click.argument("name", required=False)
@AS_JSON
def devices(name: str | None, as_json: bool) -> None:
    """List target devices, or show one: units, precisions, which backends fit, sources."""
    from phipipe import catalogue

    rows = catalogue.devices() if name is None else catalogue.device(name)
    _print_json(rows) if as_json else _echo(catalogue.text(rows))


@command("phipipe backends onnxruntime")
@click.argument("name", required=False)
@AS_JSON
def backends(name: str | None, as_json: bool) -> None:
    """List backends, or show one: precisions per unit, and every `quantize:` option."""
    from phipipe import catalogue

    rows = catalogue.backends() if name is None else catalogue.backend(name)
    _print_json(rows) if as_json else _echo(catalogue.text(rows))


@cli.group(epilog="Example:  phipipe toolchain install onnxruntime")
def toolchain() -> None:
    """The isolated environments that backends run in."""


@toolchain.command("ls", epilog="Example:  phipipe toolchain ls")
@AS_JSON
def toolchain_ls(as_json: bool) -> None:
    """List toolchains: installed or not, size, path."""
    from phipipe import catalogue

    rows = catalogue.toolchains(_settings())
    _print_json(rows) if as_json else _echo(catalogue.text(rows))


@toolchain.command("install", epilog="Example:  phipipe toolchain install onnxruntime --force")
@click.argument("names", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove it first, whatever its state.")
def toolchain_install(names: Sequence[str], force: bool) -> None:
    """Install toolchains now instead of on first use."""
    from phipipe import toolchain as toolchains

    for name in names:
        if force:
            toolchains.remove(name, _settings())
        installed = toolchains.ensure(name, _settings(), _note)
        _echo(f"{name}: {len(installed.packages)} packages")


@toolchain.command("path", epilog="Example:  $(phipipe toolchain path onnxruntime) -m pip list")
@click.argument("name")
def toolchain_path(name: str) -> None:
    """Print the Python of an installed toolchain."""
    from phipipe import toolchain as toolchains
    from phipipe.errors import ToolchainError

    installed = toolchains.installed(name, _settings())
    if installed is None:
        raise ToolchainError(f"toolchain `{name}` is not installed", hint=f"phipipe toolchain install {name}")
    _echo(str(installed.python))


@cli.group(epilog="Example:  phipipe cache gc --budget 20")
def cache() -> None:
    """What the cache holds, whether it is intact, and how to shrink it."""


@cache.command("ls", epilog="Example:  phipipe cache ls --json")
@AS_JSON
def cache_ls(as_json: bool) -> None:
    """List stored results: step, size, age, last use."""
    from phipipe import catalogue

    rows = catalogue.stored(_store()[1])
    _print_json(rows) if as_json else _echo(catalogue.text(rows))


@cache.command("verify", epilog="Example:  phipipe cache verify")
def cache_verify() -> None:
    """Hash everything; put damage aside, to be built again when it is needed."""
    findings = _store()[1].verify()
    for finding in findings:
        _echo(str(finding))
    _echo(f"{len(findings)} damaged" if findings else "everything intact")


@cache.command("gc", epilog="Example:  phipipe cache gc --budget 20 --dry-run")
@click.option("--budget", required=True, type=click.FloatRange(min=0), metavar="GIB", help="Size to shrink to, in GiB.")
@click.option("--dry-run", is_flag=True, help="Say what would go, remove nothing.")
@AS_JSON
def cache_gc(budget: float, dry_run: bool, as_json: bool) -> None:
    """Remove what was unused for longest; never what a running build needs."""
    from phipipe import catalogue

    report = catalogue.collected(_store()[1].gc(int(budget * 2**30), dry_run=dry_run))
    verb = "would free" if dry_run else "freed"
    _print_json(report) if as_json else _echo(f"{verb} {report['freed']}, {report['kept']} kept")


@command("phipipe doctor")
@AS_JSON
def doctor(as_json: bool) -> None:
    """Tell what this machine has and what is missing: cache, toolchains, memory, accelerators."""
    from phipipe import catalogue

    rows = catalogue.doctor(_settings())
    _print_json(rows) if as_json else _echo(catalogue.text(rows))


@command('eval "$(phipipe completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None  # the choices above
    click.echo(made(cli, {}, "phipipe", "_PHIPIPE_COMPLETE").source())


def _settings() -> Settings:
    from phipipe.settings import Settings

    return Settings.read()


def _store() -> tuple[Settings, Store]:
    from phipipe.store import Store

    settings = _settings()
    return settings, Store(settings.cache, notify=_note)


def _load(path: Path, sets: Sequence[str], only: Sequence[str] = ()) -> list[Any]:
    from phipipe import backends, recipe

    return recipe.load(path, sets=sets, only=only, options=backends.OptionsOf())


def _plans(path: Path, sets: Sequence[str], only: Sequence[str]) -> list[Any]:
    """Plans of all builds; nothing starts before every one of them is known to be possible."""
    from phipipe import plan as planner

    return [planner.prepare(build) for build in _load(path, sets, only)]


def _attempt(
    plans: list[Any], store: Store, settings: Settings, out: Path | None, jobs: int | None = None
) -> list[Any]:
    from phipipe import schedule, show

    with show.listener(plans, sys.stderr) as listener:
        return schedule.attempt(plans, store, settings, listener, out, jobs)


def _note(line: str) -> None:
    click.echo(line, err=True)


def _echo(text: str) -> None:
    click.echo(text)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _complain(error: PhipipeError) -> None:
    color = False if os.environ.get("NO_COLOR") else None  # None: colour on a terminal
    click.echo(click.style("error: ", fg="red", bold=True) + error.message, err=True, color=color)
    if error.hint:
        click.echo(click.style("  try: ", fg="cyan") + error.hint, err=True, color=color)


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


def main() -> NoReturn:
    """Entry point: run the command line and exit with the failure's own code (``errors``)."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _stop)
    code = 0
    try:
        ended = cli.main(standalone_mode=False)
        code = ended if isinstance(ended, int) else 0  # what a command left by click's Exit
    except PhipipeError as error:
        _complain(error)
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
