"""The commands about finished packages: eval, measure, compare, verify, chat."""

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
from phipipe.words import counted


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
        package, place.store, text=text, tokens=tokens, source=source, prompts=prompts, kv=kv
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
@AS_JSON
def measure(package: Path, out: Path | None, as_json: bool) -> None:
    """Measure a package on the device it is for, which this machine must be: fidelity, speed,
    memory.

    Needs neither the original model nor its cache. `phipipe compare` puts the report in place of
    the figures that the build machine had emulated or could not take.
    """
    from phipipe.api import show
    from phipipe.api.packages import Measurement
    from phipipe.evaluate.speed import host
    from phipipe.execution import finished
    from phipipe.package import figures

    place = store_of_user()
    planned = finished.plan_measurement(package)
    note(f"taking this machine for {planned.device.title}: {figures.host_words(host())}")
    (outcome,) = attempt("measure", [planned], place)
    if outcome.error:
        raise outcome.error
    text = Measurement(package, outcome).report()
    target = out or Path(f"{planned.build.name}-measured.json")
    save(target, text)
    if as_json:
        answers.give_text(text)
        return
    echo(show.describe_outcome(outcome))
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

    board = Board(*paths)
    page = board.write(out)
    if as_json:
        answers.give_text(board.report())
    else:
        show_board(board.entries, page)


@command("phipipe verify packages/quickstart")
@PACKAGE
@AS_JSON
def verify(package: Path, as_json: bool) -> None:
    """Check that a package is complete and unchanged, and that nothing in it runs or loads code.

    Every file's size and SHA-256, nothing added; kinds of files, settings and headers that phipipe
    writes, no others.
    """
    from phipipe.api import packages
    from phipipe.output import documents

    findings = [str(finding) for finding in packages.verify(package)]
    if as_json:
        answers.give(documents.Verified(package=str(package), ok=not findings, findings=findings))
    for finding in () if as_json else findings:
        echo(finding)
    if findings:
        raise SourceError(
            f"`{package}` is not as phipipe packages it: {counted(len(findings), 'finding')}",
            hint="do not open it; build it again, or ask for another copy",
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
    from phipipe.chat.start import start

    settings = settings_of_user()
    sys.exit(start(package, settings, note, prompt=prompt, system=system, tokens=tokens))
