"""What changes a repository on the Hugging Face hub, by the hub's own client: one commit, which
shows all of it at once.

Content that the hub keeps apart (LFS, Xet) is brought first, under its own hash, where nobody sees
it: whoever comes back after a broken attempt finds what arrived whole. Without a token nothing is
asked, for the hub would say that there is no such repository.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from phipipe.errors import SourceError
from phipipe.hub import client, exchange
from phipipe.hub.client import LOGIN, Repository
from phipipe.hub.endpoint import endpoint, token
from phipipe.hub.failures import Fault, NotThere
from phipipe.hub.published import Published

T = TypeVar("T")
THREADS = 4  # files that are sent at once
BROKEN = "a file could not be sent to the hub's storage"


@dataclass(frozen=True)
class Shown:
    """A repository at a commit: all its files, and whether others may see it."""

    commit: str
    files: Mapping[str, Published]
    private: bool


def shown(repo: Repository) -> Shown:
    """What ``repo``, whose revision may be a branch, holds now.

    Raises:
        NotThere, NoRevision: there is nothing.
        SourceError: access is refused, or the network fails.
    """
    info = client.asked(
        repo,
        lambda api: api.repo_info(
            repo.name,
            revision=repo.revision,
            files_metadata=True,
            timeout=client.TIMEOUT_S,
        ),
    )
    if not re.fullmatch("[0-9a-f]{40}", str(info.sha)):
        raise SourceError(f"the hub names no commit for `{repo.name}` at `{repo.revision}`")
    files = {
        str(s.rfilename): client.published(repo, str(s.rfilename), s.size, s.blob_id, s.lfs)
        for s in info.siblings or ()
    }
    return Shown(str(info.sha), files, bool(getattr(info, "private", False)))


def need_token(repo: Repository) -> None:
    """See that there is a token that may be sent.

    Raises:
        SourceError: there is none.
    """
    if client.is_offline():
        raise SourceError(
            f"cannot push to `{repo.name}`: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE"
        )
    if token() is None:
        if not exchange.is_private(endpoint()):
            raise SourceError(
                "a token is sent over TLS alone, and HF_ENDPOINT is not", hint="give an https one"
            )
        raise SourceError(
            "pushing to the hub needs a token that may write, and there is none",
            hint=f"{LOGIN} to one with the right to write",
        )


def create(repo: Repository, *, private: bool) -> None:
    """Make the repository, unless it is there.

    Raises:
        SourceError: the account may not, or the network fails.
    """
    _written(
        repo, lambda api: api.create_repo(repo.name, private=private, exist_ok=True), "create it on"
    )


def branch(repo: Repository) -> None:
    """Make the branch that ``repo`` names, at the repository's first commit: what other branches
    show does not appear on it.

    Raises:
        SourceError: as ``create``.
    """

    def make(api: Any) -> None:
        first = api.list_repo_commits(repo.name)[-1].commit_id
        api.create_branch(repo.name, branch=repo.revision, revision=first, exist_ok=True)

    _written(repo, make, "make a branch on")


def additions(files: Mapping[str, Path | bytes]) -> list[Any]:
    """Path in the repository → file or content, as the client's operations."""
    operation = exchange.library().CommitOperationAdd
    return [
        operation(path_in_repo=name, path_or_fileobj=one if isinstance(one, bytes) else str(one))
        for name, one in sorted(files.items())
    ]


def bring(repo: Repository, added: Sequence[Any]) -> None:
    """Send what the hub keeps apart, as far as it is not there; shows nothing yet.

    Raises:
        SourceError: the account may not, or the network fails.
    """
    _written(
        repo,
        lambda api: api.preupload_lfs_files(
            repo.name,
            added,
            revision=repo.revision,
            num_threads=THREADS,
            free_memory=False,
            gitignore_content="",  # nothing of a package is ignored
        ),
        "send files to",
    )


def commit(
    repo: Repository,
    added: Sequence[Any],
    removed: Sequence[str],
    parent: str,
    message: str,
    is_done: Callable[[], bool],
) -> None:
    """Show ``added`` (``additions``, brought), without the paths ``removed``, in one commit after
    ``parent``.

    ``is_done`` is asked before it is tried again: an answer may be lost after the hub did it.

    Raises:
        SourceError: somebody else committed first, the account may not, or the network fails.
    """
    delete = exchange.library().CommitOperationDelete
    operations = [*added, *(delete(path_in_repo=name) for name in removed)]
    tries = 0

    def once(api: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 1 or not is_done():
            api.create_commit(
                repo.name,
                operations,
                commit_message=message,
                revision=repo.revision,
                parent_commit=parent,
                num_threads=THREADS,
            )

    _written(repo, once, "commit to")


def _written(repo: Repository, ask: Callable[[Any], T], what: str) -> T:
    """As ``client.asked``, with what a writer is told."""
    need_token(repo)

    with _quiet():
        return client.asked(repo, lambda api: _plainly(ask, api), _refused, what)


def _plainly(ask: Callable[[Any], T], api: Any) -> T:
    """``ask``, whose failures are what they were before the client wrapped them.

    Raises:
        Fault: a file did not arrive.
        SourceError: one cannot be read, or the hub refuses the card.
    """
    try:
        return ask(api)
    except RuntimeError as error:  # of the threads that send files, and of Xet's library
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        raise Fault(f"{BROKEN} ({type(error).__name__})", attempts=4) from None
    except exchange.library().errors.HfHubHTTPError:  # an OSError, too
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SourceError(f"cannot read a file of the package: {reason}") from None
    except ValueError as error:
        if str(error).startswith("Invalid metadata"):
            raise SourceError("the hub refuses the front matter of `README.md`") from None
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The client's own bars and warnings, which repeat addresses that may be signed, stay out."""
    utils = exchange.library().utils
    log, bars = logging.getLogger("huggingface_hub"), not utils.are_progress_bars_disabled()
    level = log.level
    log.setLevel(logging.CRITICAL)
    utils.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            utils.enable_progress_bars()


def _refused(repo: Repository, status: int, headers: Mapping[str, str]) -> SourceError:
    """What the hub's refusal of a change means."""
    known = client.refused(repo, status, headers)
    if status == 412:
        return SourceError(
            f"`{repo.name}` changed while the package was sent: somebody else committed",
            hint="look at what is there, then push again",
        )
    if status == 403 or (isinstance(known, NotThere) and status != 401):
        return SourceError(
            f"the account of your token may not write to `{repo.name}`",
            hint=f"give the token the right to write there, or {LOGIN} to another",
        )
    return known
