"""The commands about toolchains: toolchain ls, install, build, path."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import click

from phipipe.cli import answers, completions
from phipipe.cli.groups import Group
from phipipe.cli.messages import LOG, echo, note
from phipipe.cli.options import AS_JSON, UserPath
from phipipe.cli.workplace import settings_of_user
from phipipe.errors import ToolchainError
from phipipe.files.user_paths import Kind
from phipipe.words import counted, human


@click.group(cls=Group, epilog="Example:  phipipe toolchain install onnxruntime")
def toolchain() -> None:
    """The isolated environments that backends run in."""


@toolchain.command("ls", epilog="Example:  phipipe toolchain ls")
@AS_JSON
def list_toolchains(as_json: bool) -> None:
    """List toolchains: installed or not, size, path."""
    from phipipe.cli import facts, tables

    rows = facts.toolchains(settings_of_user())
    answers.give(rows) if as_json else echo(tables.toolchains(rows))


@toolchain.command("install", epilog="Example:  phipipe toolchain install onnxruntime --force")
@click.argument("names", nargs=-1, required=True, shell_complete=completions.toolchains)
@click.option("--force", is_flag=True, help="Remove it first, whatever its state.")
@click.option(
    "--shared",
    is_flag=True,
    help="Take what others have compiled, from PHIPIPE_REMOTE. It is code that runs here: do this "
    "only where you trust all who can write there.",
)
@AS_JSON
def install(names: Sequence[str], force: bool, shared: bool, as_json: bool) -> None:
    """Install toolchains now instead of on first use.

    A wheel of the locked version in your package index, or in a folder that PIP_FIND_LINKS names,
    is taken; else llama.cpp is compiled here, which takes minutes.
    """
    from phipipe.cli import facts
    from phipipe.toolchains import compiling, wheels
    from phipipe.toolchains import environments as toolchains

    for name in names:
        if force:
            toolchains.remove(name, settings_of_user(), note)
        with contextlib.ExitStack() as stack:
            tell = stack.enter_context(_showing(name))
            links = None
            if shared and name in compiling.COMPILED:
                links = stack.enter_context(wheels.shared(name, settings_of_user(), tell))
            installed = toolchains.ensure(name, settings_of_user(), tell, links=links)
        if not as_json:
            echo(f"{name}: {counted(len(installed.packages), 'package')}")
    if as_json:
        answers.give([facts.toolchain_row(name, settings_of_user()) for name in names])


@toolchain.command("build", epilog="Example:  phipipe toolchain build llamacpp --out wheels")
@click.argument("name", shell_complete=completions.toolchains)
@click.option(
    "--out",
    type=UserPath(Kind.NEW_FOLDER),
    default="wheels",
    show_default=True,
    metavar="FOLDER",
    help="Where the wheel is written.",
)
@click.option(
    "--native",
    is_flag=True,
    help="Compile for this very processor: faster here, and it crashes on lesser ones.",
)
@click.option("--share", is_flag=True, help="Lay the wheel into PHIPIPE_REMOTE, too.")
@AS_JSON
def build(name: str, out: Path, native: bool, share: bool, as_json: bool) -> None:
    """Compile what a toolchain needs once, as a wheel for other machines.

    They take it from a folder (PIP_FIND_LINKS), or with `toolchain install --shared`. Without
    --native it runs on every x86-64 processor with AVX2 (2013 and later), and on every 64-bit Arm.
    """
    from phipipe.output import lists
    from phipipe.toolchains import wheels

    with _showing(name) as tell:
        if share:
            wheels.check_sharing(name, settings_of_user(), native=native)
        wheel = wheels.build(name, settings_of_user(), tell, out=out, native=native)
        if share:
            wheel = wheels.share(name, wheel, settings_of_user())
    if as_json:
        answers.give(
            lists.BuiltWheel(
                toolchain=name,
                wheel=str(wheel.path),
                sha256=wheel.sha256,
                size_bytes=wheel.size_bytes,
                native=wheel.native,
                shared=wheel.shared,
            )
        )
        return
    echo(f"wrote {wheel.path}: {human(wheel.size_bytes)}, SHA-256 {wheel.sha256}")
    if wheel.shared:
        echo(f"others take it with:  phipipe toolchain install {name} --shared")
    else:
        echo(f"others take it with:  PIP_FIND_LINKS=FOLDER phipipe toolchain install {name}")


@contextlib.contextmanager
def _showing(name: str) -> Iterator[Callable[[str], None]]:
    """Show how far the installation of toolchain ``name`` is; what is said beside goes to what
    this gives."""
    from phipipe import progress
    from phipipe.cli import listeners

    with listeners.many([], sys.stderr, silent=LOG.silent) as listener:
        listener.installing(name)
        with progress.listening(partial(listener.progress, name)):
            yield listener.note


@toolchain.command("path", epilog="Example:  $(phipipe toolchain path onnxruntime) -m pip list")
@click.argument("name", shell_complete=completions.toolchains)
@AS_JSON
def print_path(name: str, as_json: bool) -> None:
    """Print the Python of an installed toolchain."""
    from phipipe.cli import facts

    row = facts.toolchain_row(name, settings_of_user())
    if not row.installed:
        raise ToolchainError(
            f"toolchain `{name}` is not installed", hint=f"phipipe toolchain install {name}"
        )
    answers.give(row) if as_json else echo(str(row.python))
