"""Every setting: its name in a file and in the environment, what it is, and who may set it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from phipipe.errors import RecipeError
from phipipe.files import user_paths

REMOTES = ("s3://", "gs://", "az://", "abfs://", "file:///")
PASSWORD_IN_URL = re.compile(r"://[^/\s@]+@")
# Variables whose values are never repeated in a message.
SECRET = re.compile(
    r"(^|_)TOKENS?(_|\d|$)|(^|_)(PAT|PWD|PASS|KEY|JWT|PEM|AUTH|DSN|COOKIE)(_|$)"
    r"|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL"
    r"|API_?KEY|ACCESS_KEY|PRIVATE_?KEY|WEBHOOK|^(AWS|AZURE)_",
    re.IGNORECASE,
)


class Kind(Enum):
    """What a value is, in words for messages."""

    FOLDER = "a folder's path"
    FOLDERS = "paths of folders"
    FILE = "a file's path"
    NUMBER = "a number above 0"
    CHOICE = "one of a few words"
    ADDRESS = "an address"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting. ``key`` is its name in a file; its variable is PHIPIPE_ and the key in capitals.

    ``asks_trust``: a project's file may set it only if the user trusts that file, because the value
    decides what is run, what is believed, what leaves the machine, or how much of it is used.
    """

    key: str
    kind: Kind
    what: str
    default: str
    choices: tuple[str, ...] = ()
    asks_trust: bool = True
    in_files: bool = True

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"PHIPIPE_{self.key.upper()}"


@dataclass(frozen=True, kw_only=True)
class Value:
    """What one source gives for a setting: ``text``, as a variable would have it.

    ``name`` is how messages call it: a variable, or a place in a file and the key.
    """

    text: str
    name: str
    origin: str  # "environment", or the file's path and line
    base: Path | None = None  # where relative paths begin; None: the current folder


SETTINGS = (
    Setting(
        key="cache",
        kind=Kind.FOLDER,
        what="Where results, downloads and records of runs are kept.",
        default="the system's folder for caches",
    ),
    Setting(
        key="keep",
        kind=Kind.CHOICE,
        what="`artifacts` keeps packages in their folders, and reports; what was only on the way "
        "to them leaves the cache as soon as no step of the run needs it. `cache: {keep}` of a "
        "recipe goes before it.",
        default="all",
        choices=("all", "artifacts"),
    ),
    Setting(
        key="sources",
        kind=Kind.CHOICE,
        what="`copy` takes a copy of a local checkpoint into the cache, in place of reading it "
        "where it lies. With a shared store, and on Windows, that is so anyway.",
        default="in_place",
        choices=("in_place", "copy"),
    ),
    Setting(
        key="toolchains",
        kind=Kind.FOLDER,
        what="Where the environments of backends are installed.",
        default="`toolchains` in the cache",
    ),
    Setting(
        key="toolchain",
        kind=Kind.CHOICE,
        what="`current` runs steps in the Python that runs phipipe, without other environments.",
        default="an environment for each backend",
        choices=("current",),
        asks_trust=False,
    ),
    Setting(
        key="compute",
        kind=Kind.CHOICE,
        what="What steps in PyTorch compute on. `auto` takes a GPU that computes as the CPU does "
        "and has the memory; `cuda` (NVIDIA) and `mps` (Apple) want theirs or fail; with `cpu` "
        "no GPU is used, and none is measured on.",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
    ),
    Setting(
        key="step_timeout_s",
        kind=Kind.NUMBER,
        what="Seconds that one step may take.",
        default="no limit",
        asks_trust=False,
    ),
    Setting(
        key="idle_timeout_s",
        kind=Kind.NUMBER,
        what="Seconds that a step may go without output, progress or CPU time.",
        default="no limit",
        asks_trust=False,
    ),
    Setting(
        key="memory_limit_gib",
        kind=Kind.NUMBER,
        what="GiB of memory that one step may take. Files mapped into memory do not count.",
        default="no limit",
    ),
    Setting(
        key="preflight",
        kind=Kind.CHOICE,
        what="`off` tries runs that seem too large for this machine.",
        default="on",
        choices=("on", "off"),
    ),
    Setting(
        key="remote",
        kind=Kind.ADDRESS,
        what="The store that machines share: an address of S3, GCS, Azure, or file:///….",
        default="none",
    ),
    Setting(
        key="remote_mode",
        kind=Kind.CHOICE,
        what="`read` takes results from the shared store and gives none.",
        default="write",
        choices=("read", "write"),
    ),
    Setting(
        key="trust",
        kind=Kind.FILE,
        what="The trust file: whose signature packages must have before they are opened.",
        default="none",
    ),
    Setting(
        key="worker_path",
        kind=Kind.FOLDERS,
        what="More folders from which steps may import Python modules.",
        default="none",
        in_files=False,
    ),
)
BY_KEY = {setting.key: setting for setting in SETTINGS}


def checked(setting: Setting, value: Value) -> str:
    """The text of ``value``, made whole: a path is absolute, an address has no slash at
    its end.

    Raises:
        RecipeError: it makes no sense for ``setting``; names where it stands.
    """
    if setting.kind in (Kind.FOLDER, Kind.FILE):
        return str(_path(value, setting.kind))
    if setting.kind is Kind.NUMBER:
        return str(_positive(value))
    if setting.kind is Kind.ADDRESS:
        return _address(value)
    if setting.kind is Kind.CHOICE and value.text not in setting.choices:
        words = ", ".join(f"`{choice}`" for choice in setting.choices)
        raise RecipeError(
            f"{value.name} is `{user_paths.shown(value.text)}`",
            hint=f"set it to {words}, or not at all",
        )
    return value.text


def _path(value: Value, kind: Kind) -> Path:
    # Path's own raises where there is no such user
    path = Path(os.path.expanduser(value.text))  # noqa: PTH111
    path = (value.base or Path()).joinpath(path).absolute()
    is_file = kind is Kind.FILE
    meant = user_paths.Kind.FILE if is_file else user_paths.Kind.NEW_FOLDER
    if odd := user_paths.problem(path, meant, value.text):
        raise RecipeError(
            f"{value.name} is `{user_paths.shown(value.text)}`, which {odd}",
            hint="give a file's path" if is_file else "give a folder's path; it may not exist yet",
        )
    return path


def _address(value: Value) -> str:
    if PASSWORD_IN_URL.search(value.text):
        raise RecipeError(
            f"{value.name} holds credentials",
            hint="give them as the provider's own variables (AWS_ACCESS_KEY_ID …)",
        )
    if not value.text.startswith(REMOTES):
        raise RecipeError(
            f"{value.name} is `{user_paths.shown(value.text)}`",
            hint=f"give an address that starts with {', '.join(REMOTES)}, or unset it",
        )
    return value.text.rstrip("/")


def _positive(value: Value) -> float:
    try:
        number = float(value.text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise RecipeError(
            f"{value.name} is `{user_paths.shown(value.text)}`",
            hint="give a number above 0, or unset it",
        )
    return number
