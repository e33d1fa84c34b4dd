"""The commands about finished packages: eval, measure, compare, chat."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from phipipe.cli import answers
from phipipe.cli.attempt import attempt, show_board
from phipipe.cli.files import save
from phipipe.cli.groups import command
from phipipe.cli.messages import echo, note
from phipipe.cli.options import AS_JSON, PACKAGE, Count, UserPath
from phipipe.cli.workplace import settings_of_user, store_of_user
from phipipe.errors import SourceError
from phipipe.files.user_paths import Kind


@command("phipipe eval packages/quickstart --tokens 8192")
@PACKAGE
@click.option(
    "--text", type=UserPath(Kind.FILE, SourceError, "text"), help="Another evaluation text (UTF-8)."
)
@click.option("--tokens", type=Count(min=256), help="How many tokens of it.")
@click.option(
    "--source",
    type=UserPath(Kind.EITHER, SourceError, "source"),
    help="The original's folder, or its GGUF; else from the cache, or its hub again.",
)
@click.option(
    "--prompts",
    type=UserPath(Kind.FILE, SourceError),
    help="Ask these (JSON Lines, a chat each) instead of the recipe's.",
)
@click.option(
    "--kv",
    type=click.Choice(["q8", "q4"]),
    help="Once more with keys and values in 8 or 4 bits.",
)
@AS_JSON
def eval_(
    package: Path,
    text: Path | None,
    tokens: int | None,
    source: Path | None,
    prompts: Path | None,
    kv: str | None,
    as_json: bool,
) -> None:
    """Evaluate a finished package again: same metrics, other text or length, this machine."""
    from phipipe.api import show
    from phipipe.execution import finished

    place = store_of_user()
    planned = finished.plan_evaluation(
        package, place.store, note, text=text, tokens=tokens, source=source, prompts=prompts, kv=kv
    )
    (outcome,) = attempt("eval", [planned], place)
    if outcome.error:
        raise outcome.error
    if as_json:
        answers.give(show.outcome_json(outcome))
    else:
        echo(show.describe_outcome(outcome))


@command("phipipe measure packages/quickstart --out quickstart-measured.json")
@PACKAGE
@click.option(
    "--out", type=UserPath(Kind.NEW_FILE), help="The report; default NAME-measured.json, here."
)
@click.option(
    "--import",
    "printed",
    type=UserPath(Kind.FILE, SourceError, "file"),
    help="Take speeds that another tool printed on the device: `llama-bench -o json`, LiteRT-LM's "
    "benchmark, or MLX's.",
)
@click.option("--on", "machine", help="With --import: the machine's name, such as 'iPhone 16 Pro'.")
@AS_JSON
def measure(
    package: Path, out: Path | None, printed: Path | None, machine: str | None, as_json: bool
) -> None:
    """Measure a package on the device it is for, which this machine must be: fidelity, speed,
    memory.

    Needs neither the original model nor its cache. `phipipe compare` puts the report in place of
    the figures that the build machine had emulated or could not take. Where phipipe does not run,
    as on phones, --import takes what a tool printed there.
    """
    if printed is not None:
        _import(package, out, printed, machine, as_json)
        return
    if machine is not None:
        raise click.UsageError("`--on` names the machine of figures that `--import` takes")
    from phipipe.api import show
    from phipipe.api.measurements import Measurement
    from phipipe.evaluate.speed import host
    from phipipe.execution import finished
    from phipipe.package import figures

    place = store_of_user()
    planned = finished.plan_measurement(package, note)
    note(f"taking this machine for {planned.device.title}: {figures.host_words(host())}")
    (outcome,) = attempt("measure", [planned], place)
    if outcome.error:
        raise outcome.error
    text = Measurement(package, outcome).report()
    _give(
        package, planned.build.name, out, text, None if as_json else show.describe_outcome(outcome)
    )


def _import(
    package: Path, out: Path | None, printed: Path, machine: str | None, as_json: bool
) -> None:
    """Take speeds that another tool printed."""
    from phipipe.api.measurements import ImportedSpeeds
    from phipipe.metrics import METRICS
    from phipipe.package import figures

    found = ImportedSpeeds(package, printed, machine, note)
    entry = found.entry
    rows = [
        f"  {metric.title}: {' '.join(figures.shown(metric, entry.metrics[metric.name])).strip()}"
        for metric in METRICS.values()
        if metric.kind == "speed" and metric.name in entry.metrics
    ]
    told = "\n".join([f"{entry.name} on {figures.host_words(entry.host)}", *rows])
    _give(package, entry.name, out, found.report(), None if as_json else told)


def _give(package: Path, name: str, out: Path | None, report: str, told: str | None) -> None:
    """Save the ``report``, and print it, or in its place what is ``told`` of it."""
    target = out or Path(f"{name}-measured.json")
    save(target, report)
    if told is None:
        answers.give_text(report)
        return
    echo(told)
    echo(f"\nreport   {target}\ncompare  phipipe compare {package} {target}")


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
    from phipipe.api.boards import Board

    board = Board(*paths, on_note=note)
    page = board.write(out)
    if as_json:
        answers.give_text(board.report())
    else:
        show_board(board.entries, page)


@command("phipipe chat packages/quickstart --prompt 'Tell me a story.'")
@PACKAGE
@click.option("--prompt", help="Answer this and end; without it, an interactive chat.")
@click.option("--system", help="A system message.")
@click.option("--tokens", default=256, show_default=True, type=Count(min=1), help="Longest answer.")
def chat(package: Path, prompt: str | None, system: str | None, tokens: int) -> None:
    """Talk to a package through its own runtime, greedily."""
    from phipipe.chat.start import start

    settings = settings_of_user()
    sys.exit(start(package, settings, note, prompt=prompt, system=system, tokens=tokens))
