"""Commands that list what there is to choose from: devices and backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from phipipe.cli import answers
from phipipe.cli.console import AS_JSON, Listing, cli, echo

T = TypeVar("T")


@cli.group(
    cls=Listing, invoke_without_command=True, epilog="Example:  phipipe devices show intel-npu"
)
@AS_JSON
@click.pass_context
def devices(context: click.Context, as_json: bool) -> None:
    """List target devices; `show NAME` for one."""
    if context.invoked_subcommand is None:
        from phipipe.cli import listing_text, tables

        _show(tables.devices(), as_json, listing_text.devices)


@devices.command("show", epilog="Example:  phipipe devices show intel-npu")
@click.argument("name")
@AS_JSON
def devices_show(name: str, as_json: bool) -> None:
    """Show a device: units, precisions, memory, which backends fit, where to start, sources."""
    from phipipe.cli import listing_text, tables

    _show(tables.device(name), as_json, listing_text.device)


@cli.group(
    cls=Listing, invoke_without_command=True, epilog="Example:  phipipe backends show onnxruntime"
)
@AS_JSON
@click.pass_context
def backends(context: click.Context, as_json: bool) -> None:
    """List backends; `show NAME` for one."""
    if context.invoked_subcommand is None:
        from phipipe.cli import listing_text, tables

        _show(tables.backends(), as_json, listing_text.backends)


@backends.command("show", epilog="Example:  phipipe backends show onnxruntime")
@click.argument("name")
@AS_JSON
def backends_show(name: str, as_json: bool) -> None:
    """Show a backend: precisions per unit, and every `quantize:` option."""
    from phipipe.cli import listing_text, tables

    _show(tables.backend(name), as_json, listing_text.backend)


def _show(data: T, as_json: bool, text: Callable[[T], str]) -> None:
    above = click.get_current_context().parent
    asked = as_json or bool(above and above.params.get("as_json"))  # `devices --json NAME` as well
    answers.give(data) if asked else echo(text(data))
