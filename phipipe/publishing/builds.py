"""Builds whose recipe says where their packages are published."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from phipipe.errors import PhipipeError
from phipipe.hub import writing
from phipipe.hub.client import Repository
from phipipe.package import package as packages
from phipipe.publishing import places
from phipipe.publishing.push import push
from phipipe.recipe import addresses
from phipipe.recipe.build import Build


def check(builds: Iterable[Build]) -> None:
    """See that what speaks to the addresses of ``builds`` is installed, and that there is a token
    where one is needed: before hours of work. Nothing is asked of anybody.

    Raises:
        ToolchainError, SourceError: not so.
    """
    for build in builds:
        for text in build.recipe.publish:
            address = addresses.named(text, build.name, "0" * addresses.DIGITS)
            places.of(address).close()
            if isinstance(address, addresses.HubAddress):
                writing.need_token(Repository("model", address.repo, address.revision))


def publish(
    build: Build,
    package: Path,
    note: Callable[[str], None],
    replaces: Collection[str] = (),
) -> PhipipeError | None:
    """Push the ``package`` of ``build`` to all addresses of its recipe; the first failure, after
    all were tried. The package stays where it is.

    Args:
        note: hears what became of each.
        replaces: as ``push`` has it.
    """
    failed: PhipipeError | None = None
    for text in build.recipe.publish:
        try:
            digest = packages.read_manifest(package).digest
            address = str(addresses.named(text, build.name, digest))
            done = push(package, address, replaces=replaces, note=note)
            same = "has this package already" if done.state == "same" else "has the package now"
            note(f"{build.name}: {done.address} {same}")
        except PhipipeError as error:
            told = f"{build.name} is built and at `{package}`, but not published: {error.message}"
            failed = failed or type(error)(told, hint=_hint(error, package))
    return failed


def _hint(error: PhipipeError, package: Path) -> str:
    then = f"phipipe push {package} ADDRESS does it alone"
    return f"{error.hint}; {then}" if error.hint else then
