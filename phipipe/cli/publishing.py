"""The commands that bring packages to others and back: push, pull."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from phipipe.cli import answers
from phipipe.cli.groups import command
from phipipe.cli.messages import LOG, echo, note
from phipipe.cli.options import AS_JSON, PACKAGE, UserPath
from phipipe.errors import SourceError
from phipipe.files.user_paths import Kind
from phipipe.words import counted, human


@command("phipipe push packages/quickstart hf://OWNER/NAME --private")
@PACKAGE
@click.argument("address")
@click.option("--force", is_flag=True, help="Also where another package is; it is replaced.")
@click.option("--dry-run", is_flag=True, help="List what would be sent, and change nothing.")
@click.option(
    "--private/--public",
    default=None,
    help="Who may see a repository that has to be made on the hub.",
)
@AS_JSON
def push(
    package: Path, address: str, force: bool, dry_run: bool, private: bool | None, as_json: bool
) -> None:
    """Publish a package on the Hugging Face hub, in an OCI registry or in a bucket.

    ADDRESS is hf://OWNER/NAME[@REVISION], oci://HOST[:PORT]/NAME:TAG or s3://BUCKET/PREFIX. The
    package is verified first. The same package again sends nothing, and an attempt that broke is
    continued. Tokens come from the environment, or from where `hf` and `docker` keep them.
    """
    from phipipe.api import publishing
    from phipipe.output import published

    with _progress("sent") as tell:
        done = publishing.push(
            package, address, force=force, dry_run=dry_run, private=private, on_progress=tell
        )
    visibility = {True: "private", False: "public", None: None}[done.private]
    if as_json:
        rows = [
            published.SentFile(path=one.path, size_bytes=one.size, sha256=one.sha256)
            for one in done.sent
        ]
        answers.give(
            published.Pushed(
                address=done.address,
                package=str(package),
                name=done.name,
                digest=done.digest,
                state=done.state,
                visibility=visibility,
                replaced=done.replaced,
                size_bytes=done.sent_bytes,
                files=rows,
            )
        )
        return
    sent = f"{counted(len(done.sent), 'file')}, {human(done.sent_bytes)}"
    if done.state == "same":
        echo(f"{done.address} has this package already: nothing was sent")
    elif done.state == "dry-run":
        for one in done.sent:
            echo(f"{human(one.size):>9}  {one.path}")
        seen = f", {visibility}" if visibility else ""
        echo(f"would send {sent} to {done.address}{seen}")
    else:
        echo(f"pushed   {package}, {sent}\naddress  {done.address}")
    if done.replaced:
        echo(f"{'replaces' if done.state == 'dry-run' else 'replaced'} {done.replaced}")
    echo(f"digest   {done.digest}\npull     phipipe pull {done.address}")


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
    continued by the next call.
    """
    from phipipe.api import publishing
    from phipipe.output import published

    with _progress("fetched") as tell:
        done = publishing.pull(address, out, on_progress=tell)
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
            )
        )
        return
    if done.state == "same":
        echo(f"{done.folder} is this package already: nothing was fetched")
    else:
        echo(f"pulled   {done.folder}, {human(done.fetched_bytes)}")
    if done.attached:
        echo(f"attached {', '.join(done.attached)}")
    echo(f"digest   {done.digest}\nchat     phipipe chat {done.folder}")


@contextlib.contextmanager
def _progress(word: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far it is on a terminal, in one line that goes away; else nothing."""
    shows, last = sys.stderr.isatty() and not LOG.silent, -1

    def tell(done: int, total: int) -> None:
        nonlocal last
        percent = 100 * done // total if total else 100
        if shows and percent != last:
            last = percent
            line = f"{word} {human(done)} of {human(total)} ({percent} %)"
            click.echo(f"\r{line:<60}", err=True, nl=False)

    try:
        yield tell
    finally:
        if last >= 0:
            click.echo(f"\r{'':<60}\r", err=True, nl=False)
        elif LOG.verbose:
            note(f"nothing had to be {word}")
