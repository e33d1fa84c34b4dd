"""Facts for the listing commands: devices, backends, toolchains, cache, this machine; as data
(``output``)."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from phipipe import __version__, hardware
from phipipe import backends as registry
from phipipe.output import documents, lists
from phipipe.planning import starter_text
from phipipe.recipe import device as targets
from phipipe.recipe.recipe import PRECISIONS
from phipipe.settings import Settings, config
from phipipe.store import downloads
from phipipe.store.collection import GcReport
from phipipe.store.store import Store


def devices() -> list[lists.Device]:
    """One row per device file."""
    return [
        lists.Device(
            device=name,
            title=target.title,
            architecture=target.architecture,
            systems=list(target.systems),
            memory_gib=target.memory_gib,
            units=[unit.api for unit in target.units],
            recipe=target.recipe,
        )
        for name, target in ((name, targets.load(name)) for name in targets.names())
    ]


def device(name: str) -> lists.DeviceDetails:
    """One device: its units, what builds for it here, and where the facts come from."""
    target = targets.load(name)
    return lists.DeviceDetails(
        device=name,
        title=target.title,
        architecture=target.architecture,
        systems=list(target.systems),
        memory_gib=target.memory_gib,
        units=[_unit(target, unit) for unit in target.units],
        recipe=target.recipe,
        start=_start(target, name),
        notes=target.notes,
        sources=list(target.sources),
    )


def _unit(target: targets.Device, unit: targets.Unit) -> lists.Unit:
    able = {backend: registry.able(backend, target, unit) for backend in registry.names()}
    return lists.Unit(
        unit=unit.api,
        on=unit.on,
        precisions=list(unit.precisions),
        constraints={precision: dict(table) for precision, table in unit.constraints.items()},
        defaults={precision: dict(table) for precision, table in unit.defaults.items()},
        backends={backend: list(precisions) for backend, precisions in able.items() if precisions},
    )


def _start(target: targets.Device, named: str) -> str | None:
    """The command that gets somebody going for ``target``, which the user has ``named`` so."""
    if target.recipe is not None:
        recipe, value = target.recipe, f"device={starter_text.flow(named)}"
        run = f"phipipe run {recipe}.yaml --set {starter_text.word(Path(value))}"
        return f"phipipe recipes copy {recipe} && {run}"
    built = any(
        registry.able(name, target, unit) for unit in target.units for name in registry.names()
    )
    device = starter_text.word(Path(named))
    return f"phipipe init my-recipe.yaml --device {device}" if built else None


def backends() -> list[lists.Backend]:
    """One row per backend face."""
    rows = []
    for name in registry.names():
        face = registry.load(name)
        precisions = sorted(
            {p for table in face.precisions.values() for p in table}, key=PRECISIONS.index
        )
        rows.append(
            lists.Backend(
                backend=name,
                title=face.title,
                toolchain=face.toolchain,
                precisions=[*precisions],
                units=sorted(face.apis),
            )
        )
    return rows


def backend(name: str) -> lists.BackendDetails:
    """One backend: its own names for our precisions, and every option of ``quantize:``."""
    face = registry.load(name)
    return lists.BackendDetails(
        backend=name,
        title=face.title,
        suits=face.suits,
        toolchain=face.toolchain,
        precisions={
            api: {str(ours): own for ours, own in table.items()}
            for api, table in sorted(face.precisions.items())
        },
        quantize={
            key: lists.Option(
                default=field.get_default(call_default_factory=True),
                type=_type(field.annotation),
                what=field.description,
                advice=face.advice.get(key),
                values=dict(face.values.get(key, {})),
            )
            for key, field in face.options.model_fields.items()
        },
    )


def _type(annotation: object) -> str:
    """An annotation as a recipe's author reads it: `true or false`, `16, 32 or 64`."""
    inner = [arm for arm in get_args(annotation) if arm is not type(None)]
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(map(_type, inner))
    if get_origin(annotation) in (dict, Mapping):
        return f"mapping of {_type(inner[0])} to {_type(inner[1])}"
    if get_origin(annotation) is Annotated:
        return _type(inner[0])
    choices = list(map(str, inner))
    if get_origin(annotation) is Literal:
        return (
            " or ".join([", ".join(choices[:-1]), choices[-1]]) if len(choices) > 1 else choices[0]
        )
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"`{{{', '.join(annotation.model_fields)}}}`"
    words: dict[object, str] = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
    }
    return words.get(
        annotation, "list of text" if get_origin(annotation) in (list, tuple) else str(annotation)
    )


def toolchains(settings: Settings) -> list[lists.Toolchain]:
    """One row per toolchain: installed or not, packages, size."""
    from phipipe.toolchains import environments

    return [toolchain_row(name, settings) for name in environments.names()]


def toolchain_row(name: str, settings: Settings) -> lists.Toolchain:
    """One toolchain.

    Raises:
        ToolchainError: there is no such toolchain.
    """
    from phipipe.toolchains import environments

    there = environments.installed(name, settings)
    return lists.Toolchain(
        toolchain=name,
        installed=there is not None,
        packages=len(there.packages) if there else None,
        size_bytes=environments.size_bytes(name, settings) if there else None,
        path=str(there.path) if there else None,
        python=str(there.python) if there else None,
    )


def stored(store: Store) -> list[lists.Stored]:
    """One row per stored result and per unfinished download, last used first."""
    rows = [
        (usage.used, lists.Stored(
            key=usage.key, runs=usage.runs, repository=None, state=usage.state,
            size_bytes=usage.size_bytes,
            created=documents.iso(usage.created), used=documents.iso(usage.used),
        ))
        for usage in store.usage()
    ]  # fmt: skip
    for part in downloads.unfinished(store.root):
        used = datetime.datetime.fromtimestamp(part.used_ns / 1e9, datetime.UTC)
        row = lists.Stored(
            key=None, runs=None, repository=part.repository, state="unfinished",
            size_bytes=part.size_bytes,
            created=documents.iso(part.since), used=documents.iso(used),
        )  # fmt: skip
        rows.append((used, row))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0], reverse=True)]


def collected(report: GcReport, dry_run: bool) -> lists.Collected:
    """What a garbage collection did, or would do."""
    return lists.Collected(
        dry_run=dry_run,
        removed=list(report.removed),
        freed_bytes=report.freed_bytes,
        kept_bytes=report.kept_bytes,
    )


def doctor(settings: Settings, checks: Sequence[lists.Check] = ()) -> lists.Doctor:
    """What this machine has, what is missing, and how to get it."""
    from phipipe.evaluate.speed import host
    from phipipe.toolchains import environments

    disk = shutil.disk_usage(
        next(p for p in (settings.cache, *settings.cache.parents) if p.exists())
    )
    rows = toolchains(settings)
    missing = [
        row.toolchain for row in rows if not row.installed and environments.is_useful(row.toolchain)
    ]
    return lists.Doctor(
        phipipe=__version__,
        python=sys.version.split()[0],
        machine=host(),
        memory_available_bytes=hardware.available_bytes(),
        nvidia=hardware.nvidia(),
        cache=str(settings.cache),
        cache_free_bytes=disk.free,
        unfinished_downloads=[
            lists.Download(repository=part.repository, size_bytes=part.size_bytes)
            for part in downloads.unfinished(settings.cache)
        ],
        settings_files=[str(file.path) for file in config.files() if file.found],
        toolchains=rows,
        next=f"phipipe toolchain install {' '.join(missing)}" if missing else None,
        checks=list(checks),
    )
