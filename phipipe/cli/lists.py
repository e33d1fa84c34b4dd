"""The commands that list what there is to choose from: devices, backends."""

from __future__ import annotations

from typing import NamedTuple

import click

from phipipe.cli import answers, completions
from phipipe.cli.groups import Listing
from phipipe.cli.messages import echo
from phipipe.cli.options import AS_JSON


class _Words(NamedTuple):
    """What the help of a listing says."""

    example: str
    every: str
    one: str


def _listing(plural: str, singular: str, words: _Words) -> click.Group:
    """The group ``plural``: without a word it lists everything, ``show`` gives all about one.

    Facts and their tables have functions of the names ``plural`` and ``singular``.
    """
    epilog = f"Example:  phipipe {plural} show {words.example}"

    @click.group(plural, cls=Listing, invoke_without_command=True, epilog=epilog, help=words.every)
    @AS_JSON
    @click.pass_context
    def group(context: click.Context, as_json: bool) -> None:
        if context.invoked_subcommand is None:
            _show(plural, as_json)

    @group.command("show", epilog=epilog, help=words.one)
    @click.argument("name", shell_complete=getattr(completions, plural))
    @AS_JSON
    @click.pass_context
    def show(context: click.Context, name: str, as_json: bool) -> None:
        above = context.parent  # `devices --json NAME` as well
        _show(singular, as_json or bool(above and above.params.get("as_json")), name)

    return group


def _show(kind: str, as_json: bool, *names: str) -> None:
    from phipipe.cli import facts, tables

    data = getattr(facts, kind)(*names)
    answers.give(data) if as_json else echo(getattr(tables, kind)(data))


devices = _listing(
    "devices",
    "device",
    _Words(
        example="intel-npu",
        every="List target devices; `show NAME` for one.",
        one="Show a device: units, precisions, memory, which backends fit, where to start, "
        "sources.",
    ),
)
backends = _listing(
    "backends",
    "backend",
    _Words(
        example="onnxruntime",
        every="List backends; `show NAME` for one.",
        one="Show a backend: precisions per unit, and every `quantize:` option.",
    ),
)
