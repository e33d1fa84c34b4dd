"""The command line: parse → call → print. Only the modules of this room print or exit.

Nothing heavy is imported before a command is chosen: ``phipipe --help`` costs little more than
click.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import click

from phipipe import (
    __version__,
    answers,
    cli_batch,
    cli_build,
    cli_cache,
    cli_help,
    cli_lists,
    cli_packages,
    cli_recipes,
    cli_runs,
    cli_schedule,
    cli_schema,
    cli_toolchains,
    streams,
)
from phipipe.cli_groups import Group
from phipipe.cli_messages import complain, misused, note
from phipipe.errors import Interrupted, PhipipeError, StoreError

COMMANDS = (  # in the order a user meets them
    cli_build.run,
    cli_build.plan,
    cli_recipes.validate,
    cli_packages.eval_,
    cli_packages.measure,
    cli_packages.compare,
    cli_packages.verify,
    cli_packages.chat,
    cli_recipes.init,
    cli_lists.devices,
    cli_lists.backends,
    cli_batch.batch,
    cli_batch.worker,
    cli_schedule.schedule,
    cli_schema.schema,
    cli_recipes.pin,
    cli_toolchains.toolchain,
    cli_cache.cache,
    cli_runs.runs,
    cli_help.explain,
    cli_help.doctor,
    cli_help.completion,
)


@click.group(
    cls=Group,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="phipipe")
def cli() -> None:
    """One recipe in, one verified artifact out: small language models for edge devices."""


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
        code = _fail(error)
    sys.exit(_checked(code))


def _stop(signum: int, _frame: object) -> NoReturn:
    raise Interrupted("stopped by SIGTERM", exit_code=128 + signum)


def _fail(error: BaseException) -> int:
    """Say what ``error`` is, to people and to programs; its exit code."""
    from phipipe import output

    if isinstance(error, PhipipeError):
        complain(error)
        document = output.error_of(error)
    elif isinstance(error, click.Abort | KeyboardInterrupt):
        stopped = Interrupted(
            "stopped; what was finished is kept, the same command goes on from there"
        )
        note(stopped.message)
        document = output.error_of(stopped)
    elif isinstance(error, click.ClickException):
        misused(error)
        context = getattr(error, "ctx", None)
        document = output.usage_error(error.format_message(), context and context.command_path)
    elif isinstance(error, Exception):
        document = output.error_of(_unexpected(error))
    else:
        raise error
    answers.fail(document)
    return document.code


def _unexpected(error: Exception) -> PhipipeError:
    """What no command foresaw: the world's doing in a sentence, our own with a log."""
    from phipipe import uncaught

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
