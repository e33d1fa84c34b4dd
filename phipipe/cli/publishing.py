"""The commands that bring packages to others and back: push, pull."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers
from phipipe.cli.groups import command
from phipipe.cli.messages import LOG, echo, note
from phipipe.cli.options import AS_JSON, PACKAGE, UserPath
from phipipe.errors import RecipeError, SourceError
from phipipe.files.user_paths import Kind
from phipipe.words import counted, human

if TYPE_CHECKING:
    from phipipe.api.publishing import Pushed
    from phipipe.output import published

VISIBILITY = {True: "private", False: "public", None: None}


@command("phipipe push packages/quickstart hf://OWNER/NAME --private")
@PACKAGE
@click.argument("address")
@click.option("--force", is_flag=True, help="Also where another package is; it is replaced.")
@click.option("--dry-run", is_flag=True, help="List what would be sent, and change nothing.")
@click.option(
    "--private", is_flag=True, help="A repository on the hub is, or is made, for you alone."
)
@click.option("--public", is_flag=True, help="A repository on the hub is, or is made, for all.")
@AS_JSON
def push(
    package: Path,
    address: str,
    force: bool,
    dry_run: bool,
    private: bool,
    public: bool,
    as_json: bool,
) -> None:
    """Publish a package on the Hugging Face hub, in an OCI registry or in a bucket.

    ADDRESS is hf://OWNER/NAME[@REVISION], oci://HOST[:PORT]/NAME:TAG or s3://BUCKET/PREFIX. The
    package is verified first. The same package again sends nothing, and an attempt that broke is
    continued. Tokens come from the environment, or from where `hf` and `docker` keep them.
    """
    from phipipe.api import publishing

    if private and public:
        raise RecipeError("--private and --public exclude each other", hint="give one of them")
    visible = private if private or public else None
    with _progress("sent") as tell:
        done = publishing.pushed(
            package, address, note, tell, force=force, dry_run=dry_run, private=visible
        )
    if as_json:
        answers.give(_as_data(done, package))
    else:
        echo(_words(done, package))


def _as_data(done: Pushed, package: Path) -> published.Pushed:
    from phipipe.output import published

    return published.Pushed(
        address=done.address,
        package=str(package),
        name=done.name,
        digest=done.digest,
        state=done.state,
        visibility=VISIBILITY[done.private],
        replaced=done.replaced,
        size_bytes=done.sent_bytes,
        files=[
            published.SentFile(path=one.path, size_bytes=one.size, sha256=one.sha256)
            for one in done.sent
        ],
    )


def _words(done: Pushed, package: Path) -> str:
    sent = f"{counted(len(done.sent), 'file')}, {human(done.sent_bytes)}"
    visibility = f", {VISIBILITY[done.private]}" if done.private is not None else ""
    lines = [f"{human(one.size):>9}  {one.path}" for one in done.sent]
    if done.state == "same":
        lines = [f"{done.address} has this package already: nothing was sent"]
    elif done.state == "dry-run":
        lines.append(f"would send {sent} to {done.address}{visibility}")
    else:
        lines = [f"pushed   {package}, {sent}", f"address  {done.address}{visibility}"]
    if done.replaced:
        lines.append(f"{'replaces' if done.state == 'dry-run' else 'replaced'} {done.replaced}")
    return "\n".join([*lines, f"digest   {done.digest}", f"pull     phipipe pull {done.address}"])


@command("phipipe pull hf://OWNER/NAME")
@click.argument("address")
@click.option(
    "--out",
    type=UserPath(Kind.NEW_FOLDER, SourceError),
    help="The package's folder; default packages/NAME.",
)
@AS_JSON
def pull(address: str, out: Path | None, as_json: bool) -> None:
    """Fetch a package from where `push` published it, verify it, and put it into its folder.

    Nothing is left of a package that is not as phipipe packages it. A download that broke is
    continued by the next call. Where the very package is there already, only a signature or a
    provenance that is another at ADDRESS is fetched.
    """
    from phipipe.api import publishing
    from phipipe.output import published

    with _progress("fetched") as tell:
        done = publishing.pulled(address, note, out, tell)
    if as_json:
        answers.give(
            published.Pulled(
                address=done.address,
                package=str(done.folder),
                name=done.name,
                digest=done.digest,
                state=done.state,
                size_bytes=done.fetched_bytes,
                attached=list(done.attached),
                renewed=list(done.renewed),
            )
        )
        return
    if done.state == "same":
        fetched = (
            f"; fetched {', '.join(done.renewed)}" if done.renewed else ": nothing was fetched"
        )
        echo(f"{done.folder} is this package already{fetched}")
    else:
        echo(f"pulled   {done.folder}, {human(done.fetched_bytes)}")
    if done.attached:
        echo(f"attached {', '.join(done.attached)}")
    echo(f"digest   {done.digest}\nchat     phipipe chat {done.folder}")


@contextlib.contextmanager
def _progress(word: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far it is on a terminal, in a bar that goes away; else nothing."""
    if LOG.silent or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), DownloadColumn())
    console = Console(file=sys.stderr, highlight=False)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(word, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
