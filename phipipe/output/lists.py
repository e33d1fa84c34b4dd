"""What listing commands print as JSON, by name; as ``output``."""

from __future__ import annotations

from dataclasses import dataclass

from phipipe.steps import Json


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device in the list."""

    device: str
    title: str
    architecture: str | None
    systems: list[str]
    memory_gib: float | None
    units: list[str]
    recipe: str | None


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit of a device; ``backends`` are those that build for it: backend → precisions."""

    unit: str
    on: str | None
    precisions: list[str]
    constraints: dict[str, dict[str, Json]]
    defaults: dict[str, dict[str, Json]]
    backends: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class DeviceDetails:
    """A device. ``start`` is the command to start with."""

    device: str
    title: str
    architecture: str | None
    systems: list[str]
    memory_gib: float | None
    units: list[Unit]
    recipe: str | None
    start: str | None
    notes: str | None
    sources: list[str]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A backend in the list."""

    backend: str
    title: str
    toolchain: str
    precisions: list[str]
    units: list[str]


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of ``quantize:``; ``type`` is in words, ``advice`` is when to use which value.
    ``values`` says so of single values: those that have a line of their own."""

    default: Json
    type: str
    what: str | None
    advice: str | None
    values: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class BackendDetails:
    """A backend: when it suits, unit → precision → its own name for it, and its options."""

    backend: str
    title: str
    suits: str
    toolchain: str
    precisions: dict[str, dict[str, str]]
    quantize: dict[str, Option]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting. ``key`` is its name in a file; None: files cannot set it. ``source`` is
    "default", "environment", or a file and a line. ``needs_trust``: a project's file can set it
    only if it is trusted."""

    key: str | None
    variable: str
    value: str | None
    source: str
    default: str
    needs_trust: bool
    what: str


@dataclass(frozen=True, kw_only=True)
class SettingsFile:
    """A file of settings; ``kind`` is "project" or "user"."""

    path: str
    kind: str
    exists: bool
    trusted: bool


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A toolchain; what is null is not known before it is installed. ``packages`` are counted."""

    toolchain: str
    installed: bool
    packages: int | None
    size_bytes: int | None
    path: str | None
    python: str | None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A stored result, or an unfinished download (``key`` and ``runs`` are null, ``repository`` is
    not). ``state``: "stored"; "in place", read where the user has it; "let go", of which reports
    are left; "unfinished"."""

    key: str | None
    runs: str | None
    repository: str | None
    state: str
    size_bytes: int
    created: str
    used: str


@dataclass(frozen=True, kw_only=True)
class CacheVerified:
    """What ``cache verify`` found; damage was put aside."""

    ok: bool
    findings: list[str]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a garbage collection removed, or with ``dry_run`` would have."""

    dry_run: bool
    removed: list[str]
    freed_bytes: int
    kept_bytes: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recorded run: ``state`` is ok, failed, running or interrupted."""

    id: str
    command: str
    started: str
    state: str
    exit_code: int | None
    seconds: float | None
    builds: list[str]


@dataclass(frozen=True, kw_only=True)
class RunDetails(Run):
    """A recorded run with all its events."""

    events: list[dict[str, Json]]


@dataclass(frozen=True, kw_only=True)
class Download:
    """A download that did not end."""

    repository: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Check:
    """A finding about this machine, or about a build of a recipe; ``ok`` is null where nothing was
    asked."""

    name: str
    ok: bool | None
    message: str
    hint: str | None
    recipe: str | None
    build: str | None
    free_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """This machine, and what is missing: ``next`` is the command for it."""

    phipipe: str
    python: str
    machine: dict[str, Json]
    memory_available_bytes: int
    nvidia: str | None
    cache: str
    cache_free_bytes: int
    unfinished_downloads: list[Download]
    settings_files: list[str]
    toolchains: list[Toolchain]
    next: str | None
    checks: list[Check]


@dataclass(frozen=True, kw_only=True)
class SchemaFile:
    """A schema that was written, or compared; ``fresh`` tells whether the file has what it should
    have now."""

    path: str
    fresh: bool


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A page of the documentation."""

    topic: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page with its text, which is Markdown."""

    topic: str
    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ShippedRecipe:
    """A recipe that comes with phipipe; ``builds`` are counted."""

    recipe: str
    model: str
    devices: list[str]
    backends: list[str]
    precisions: list[str]
    builds: int
    tags: list[str]
    summary: str


@dataclass(frozen=True, kw_only=True)
class ShippedRecipeDetails(ShippedRecipe):
    """A recipe that comes with phipipe, with the text of its file."""

    text: str


@dataclass(frozen=True, kw_only=True)
class CopiedRecipe:
    """A shipped recipe that was copied to the file ``recipe``; ``next`` are the commands to go on
    with."""

    recipe: str
    copied_from: str
    next: list[str]


@dataclass(frozen=True, kw_only=True)
class BuiltWheel:
    """A wheel that was compiled. ``native``: for processors with the features of this one alone;
    ``shared``: it lies in the remote store, too."""

    toolchain: str
    wheel: str
    sha256: str
    size_bytes: int
    native: bool
    shared: bool
