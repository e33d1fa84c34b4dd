"""The command line: parse → call → print. Only the modules of this room print or exit.

Nothing heavy is imported before a command is chosen: ``phipipe --help`` costs little more than
click.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

import click

from phipipe import __version__
from phipipe.cli import answers, streams
from phipipe.cli.groups import Sections
from phipipe.cli.messages import LOG, complain, misused, note
from phipipe.cli.table import COMMANDS
from phipipe.errors import Interrupted, PhipipeError, StoreError

COMPLETE = "_PHIPIPE_COMPLETE"  # what shells set
ALIVE = 50_000  # new objects between two searches for rubbish: modules and plans stay


@click.group(
    cls=Sections,
    epilog="Example:  phipipe run recipes/quickstart.yaml",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="phipipe")
def cli() -> None:
    """One recipe in, one verified artifact out: small language models for edge devices."""


cli.take(COMMANDS)


def main() -> NoReturn:
    """Entry point: run the command line and exit with the failure's own code (``errors``)."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _stop)
    gc.set_threshold(ALIVE)
    streams.prepare()
    LOG.reset()
    answers.begin(sys.argv[1:])
    code = 0
    if COMPLETE in os.environ:
        sys.exit(_complete())
    try:
        ended = cli.main(standalone_mode=False)
        code = ended if isinstance(ended, int) else 0  # what a command left by click's Exit
    except BaseException as error:  # noqa: BLE001 (every ending has an exit code and a document)
        code = _fail(error)
    sys.exit(_checked(code))


def _complete() -> int:
    """Answer a shell that asks how a command line may go on."""
    from phipipe.cli import shells

    return shells.answer(cli)


def _stop(signum: int, _frame: object) -> NoReturn:
    raise Interrupted("stopped by SIGTERM", exit_code=128 + signum)


def _fail(error: BaseException) -> int:
    """Say what ``error`` is, to people and to programs; its exit code."""
    from phipipe.output import documents

    if isinstance(error, PhipipeError):
        complain(error)
        document = documents.error_of(error)
    elif isinstance(error, click.Abort | KeyboardInterrupt):
        stopped = Interrupted(
            "stopped; what was finished is kept, the same command goes on from there"
        )
        note(stopped.message, is_error=True)
        document = documents.error_of(stopped)
    elif isinstance(error, click.ClickException):
        misused(error)
        context = getattr(error, "ctx", None)
        document = documents.usage_error(error.format_message(), context and context.command_path)
    elif isinstance(error, Exception):
        document = documents.error_of(_unexpected(error))
    else:
        raise error
    answers.fail(document)
    return document.code


def _unexpected(error: Exception) -> PhipipeError:
    """What no command foresaw: the world's doing in a sentence, our own with a log."""
    from phipipe.cli import uncaught

    if known := uncaught.explained(error):
        complain(known)
        return known
    bug = PhipipeError(f"this is a bug in phipipe, please report it with {uncaught.log(error)}")
    note(f"error: {bug.message}", is_error=True)
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
