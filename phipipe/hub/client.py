"""What a repository on the Hugging Face hub holds at a commit, asked with the hub's own client.

The environment decides as everywhere with the hub: HF_ENDPOINT, HF_TOKEN or `hf auth login`,
HF_HUB_OFFLINE, HF_HOME and HF_HUB_CACHE. A token goes to the endpoint alone, and only over TLS (or
to this machine); it appears in no message.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.hub import exchange
from phipipe.hub.endpoint import endpoint as endpoint
from phipipe.hub.endpoint import is_offline as is_offline
from phipipe.hub.endpoint import no_address
from phipipe.hub.endpoint import token as token
from phipipe.hub.exchange import Address
from phipipe.hub.failures import (
    Fault,
    NoRevision,
    NotThere,
    Unreachable,
    fault_of,
    patiently,
    status_error,
)
from phipipe.hub.published import Published
from phipipe.models import checkpoints, weight_files

T = TypeVar("T")
TIMEOUT_S = 30.0
MOST_SHOWN = 12  # files of a repository, in one sentence
ASKS = 4  # times in a row that no answer counts as a pause; somebody may be waiting for a plan
OFFLINE_HINT = "unset HF_HUB_OFFLINE and run it once with a network; after that it works without"
# what the hub's client raises of a web page, or of some other service
NO_ANSWER = (ValueError, TypeError, KeyError, AttributeError)
LOGIN = "`hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Repository:
    """A repository at a revision: a commit wherever files are read."""

    kind: Literal["model", "dataset"]
    name: str
    revision: str

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:12]}"

    @property
    def page(self) -> str:
        """Its address for people."""
        return f"{endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def address(self, file: str) -> Address:
        """Where ``file`` is had, with the user's token if there is one."""
        key = token()
        url = f"{self.page}/resolve/{self.revision}/{quote(file)}"
        return Address(url, lambda status, headers: refused(self, status, headers, file), key)


@dataclass(frozen=True)
class Listing:
    """The files that phipipe takes, the pickles that it does not, the licence that the model card
    names, and GGUF files, each of which is a model of its own."""

    files: tuple[Published, ...]
    pickles: tuple[str, ...] = ()
    licence: str | None = None
    ggufs: tuple[str, ...] = ()

    @property
    def has_weights(self) -> bool:
        """Whether there are safetensors."""
        return any(file.name.endswith(".safetensors") for file in self.files)


def is_allowed(name: str) -> bool:
    """Whether a checkpoint's file ``name`` is taken; never code, pickles, libraries, or what lies
    in a folder."""
    plain = not re.search(r"[/\\:\x00-\x1f]", name)  # on some system these lead elsewhere
    return plain and any(fnmatch.fnmatchcase(name, pattern) for pattern in checkpoints.ALLOWED)


def listing(repo: Repository, file: str | None = None) -> Listing:
    """What the model ``repo`` holds; of its files, ``file`` alone if it is given.

    Raises:
        SourceError: there is no such repository, commit or file, access is refused, or the network
            fails.
    """
    info = asked(
        repo,
        lambda api: api.repo_info(
            repo.name, revision=repo.revision, files_metadata=True, timeout=TIMEOUT_S
        ),
    )
    if info.sha != repo.revision:
        raise SourceError(
            f"asked for `{repo.name}` at {repo.revision}, the hub answers for {str(info.sha)[:40]}"
        )
    names = [str(sibling.rfilename) for sibling in info.siblings or ()]
    pickles = sorted(
        name for name in names if any(fnmatch.fnmatchcase(name, p) for p in weight_files.PICKLES)
    )
    files = [
        published(repo, s.rfilename, s.size, s.blob_id, s.lfs)
        for s in info.siblings or ()
        if (is_allowed(s.rfilename) if file is None else s.rfilename == file)
    ]
    ggufs = tuple(sorted(name for name in names if name.lower().endswith(".gguf")))
    if file is not None and not files:
        raise missing(repo, file, ggufs)
    licence = getattr(info.card_data, "license", None)
    licence = licence if isinstance(licence, str) else None
    return Listing(tuple(sorted(files)), tuple(pickles), licence, ggufs)


def missing(repo: Repository, file: str, known: Sequence[str]) -> SourceError:
    """``file`` is not among the files of ``repo``; ``known`` are those of its kind."""
    hint = f"it has {shown(known)}" if known else f"look at {repo.page}/tree/{repo.revision}"
    return SourceError(f"`{repo}` has no file `{file}`", hint=hint)


def shown(names: Sequence[str]) -> str:
    """``names``, a stranger's, in a sentence: the first of them, and how many more there are."""
    first = ", ".join(f"`{json_files.shown(name)}`" for name in names[:MOST_SHOWN])
    more = len(names) - MOST_SHOWN
    return f"{first} and {more} more" if more > 0 else first


def single(repo: Repository, file: str) -> Listing:
    """The one file of the data set ``repo``.

    Raises:
        SourceError: as ``listing``, or there is no such file.
    """
    entries = asked(
        repo,
        lambda api: api.get_paths_info(
            repo.name, [file], revision=repo.revision, repo_type=repo.kind
        ),
    )
    for entry in entries:
        if getattr(entry, "blob_id", None) and entry.path == file:
            return Listing((published(repo, file, entry.size, entry.blob_id, entry.lfs),))
    raise refused(repo, 404, {"x-error-code": "EntryNotFound"}, file)


def commit_of(repo: Repository) -> str:
    """The 40-hex commit that ``repo``'s branch or tag is at now.

    Raises:
        SourceError: as ``listing``; or we are offline.
    """
    if is_offline():
        message = f"cannot ask which commit `{repo.name}` is at: HF_HUB_OFFLINE is set"
        raise Unreachable(message, hint=OFFLINE_HINT)
    info = asked(
        repo,
        lambda api: api.repo_info(
            repo.name, revision=repo.revision, repo_type=repo.kind, timeout=TIMEOUT_S
        ),
    )
    if not re.fullmatch("[0-9a-f]{40}", str(info.sha)):
        raise SourceError(f"the hub names no commit for `{repo.name}` at `{repo.revision}`")
    return str(info.sha)


def published(repo: Repository, name: str, size: object, blob: object, lfs: Any) -> Published:
    """A file as the hub's client describes it."""
    algorithm, digest, size = ("sha256", lfs.sha256, lfs.size) if lfs else ("git-sha1", blob, size)
    length = {"sha256": 64, "git-sha1": 40}[algorithm]
    if (
        not isinstance(size, int)
        or size < 0
        or not re.fullmatch(f"[0-9a-f]{{{length}}}", str(digest))
    ):
        raise SourceError(f"the hub publishes no usable size and hash for `{name}` of `{repo}`")
    return Published(name, size, algorithm, str(digest))


Refuse = Callable[[Repository, int, Mapping[str, str]], SourceError]


def asked(
    repo: Repository, ask: Callable[[Any], T], refuse: Refuse | None = None, what: str = "ask"
) -> T:
    """Ask the hub, again where it may help. ``refuse`` words an answer that is final, ``what`` is
    tried in vain.

    Raises:
        SourceError: it refuses, or fails too often.
    """
    final = refuse or refused

    def once() -> T:
        address = endpoint()  # before the hub's client, which does not start with a wrong one
        library, http = exchange.library(), exchange.http()
        try:
            return ask(library.HfApi(endpoint=address, token=token() or False))
        except http.InvalidURL:
            raise no_address() from None
        except library.errors.HFValidationError:
            raise SourceError(f"`{repo.name}` is no name that a repository can have") from None
        except library.errors.HfHubHTTPError as error:
            status, headers = int(error.response.status_code), error.response.headers
            raise status_error(status, headers, lambda: final(repo, status, headers)) from None
        except http.TransportError as error:
            fault = fault_of(error)
            fault.attempts = ASKS
            raise fault from None
        except NO_ANSWER:
            host = urlsplit(address).netloc
            raise Fault(f"{host} does not answer like a hub", attempts=2) from None

    return patiently(once, f"cannot {what} the hub about `{repo.name}`")


def refused(
    repo: Repository, status: int, headers: Mapping[str, str], file: str = ""
) -> SourceError:
    """What the hub's refusal means, and what to do about it."""
    code = {name.lower(): value for name, value in headers.items()}.get("x-error-code", "")
    known = token() is not None
    if code == "GatedRepo":
        return _gated(repo, known)
    if status == 401 and known:
        hint = f"{LOGIN} to a new one; public models need none"
        return SourceError("the hub refuses your token: revoked, expired or mistyped", hint=hint)
    if code == "RevisionNotFound":
        hint = (
            "check `revision`, or write `main` there and run `phipipe pin RECIPE`: it takes "
            "today's commit"
        )
        return NoRevision(f"`{repo.name}` has no revision `{repo.revision}`", hint=hint)
    if code == "EntryNotFound" or (status == 404 and file and not code):
        hint = f"look at {repo.page}/tree/{repo.revision}"
        return SourceError(f"`{repo}` has no file `{file}`", hint=hint)
    if status in (401, 404) or code == "RepoNotFound":
        then = "your token's account may not read it" if known else LOGIN
        message = f"there is no {repo.kind} `{repo.name}` on the hub, or it is private"
        return NotThere(message, hint=f"check the name; if it is private: {then}")
    if status == 403:
        allow = f"give the token the right to read it, or accept its terms on {repo.page}"
        message = f"the hub does not let you read `{repo.name}`"
        return SourceError(message, hint=allow if known else LOGIN)
    return SourceError(f"the hub answers {status} for `{repo.name}`", hint=f"look at {repo.page}")


def _gated(repo: Repository, known: bool) -> SourceError:
    """``known``: whether the hub knows who asks."""
    if not known:
        hint = f"accept it on {repo.page}, then {LOGIN}"
        return SourceError(f"`{repo.name}` is gated: its licence has to be accepted", hint=hint)
    return SourceError(
        f"`{repo.name}` is gated: the account of your token has not accepted its licence",
        hint=f"accept it on {repo.page}, with that account",
    )
