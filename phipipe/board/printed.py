"""Speeds that another tool printed on the device, as an entry of the board."""

from __future__ import annotations

from phipipe.board import entry
from phipipe.board.entry import Entry
from phipipe.errors import SourceError
from phipipe.evaluate.printed_speeds import Printed
from phipipe.package.description import Description

ALIKE = 0.1  # share by which two tools may count the parameters of one model otherwise


def of_printed(manifest: Description, printed: Printed, machine: str | None) -> Entry:
    """What was ``printed`` on ``machine``, as an entry that takes the place of the build's own: the
    speeds are the device's, all else is the build's.

    Raises:
        SourceError: the tool does not run such packages, it timed another model, or nobody says
            on what machine.
    """
    if printed.backend != manifest.backend:
        raise SourceError(
            f"{printed.tool} times packages of `{printed.backend}`, and `{manifest.name}` is one "
            f"of `{manifest.backend}`",
            hint="import the figures of the tool that runs this package",
        )
    own = manifest.source.parameters
    if printed.parameters and abs(printed.parameters - own) > ALIKE * own:
        raise SourceError(
            f"{printed.tool} timed a model of {printed.parameters:,} parameters, and "
            f"`{manifest.name}` has {own:,}",
            hint="time the file that is in this package",
        )
    where = machine or printed.machine
    if not where:
        raise SourceError(
            f"{printed.tool} does not say what it ran on",
            hint="name the machine: `--on 'iPhone 16 Pro'`",
        )
    return entry.measured(manifest, None, printed.speed(where))
