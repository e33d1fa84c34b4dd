"""Facts for the listing commands: devices, backends, toolchains, cache, this machine; as data
(``output``)."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from phipipe import __version__, downloads, hardware, output, output_lists
from phipipe import backends as registry
from phipipe import device as targets
from phipipe.collection import GcReport
from phipipe.settings import Settings
from phipipe.store import Store

PRECISIONS = ("int4", "int8", "fp16", "fp32")


def devices() -> list[output_lists.Device]:
    """One row per device file."""
    return [
        output_lists.Device(
            device=name,
            title=found.title,
            architecture=found.architecture,
            systems=list(found.systems),
            memory_gib=found.memory_gib,
            units=[unit.api for unit in found.units],
            recipe=found.recipe,
        )
        for name in targets.names()
        for found in [targets.load(name)]
    ]


def device(name: str) -> output_lists.DeviceDetails:
    """One device: its units, what builds for it here, and where the facts come from."""
    found = targets.load(name)
    return output_lists.DeviceDetails(
        device=name,
        title=found.title,
        architecture=found.architecture,
        systems=list(found.systems),
        memory_gib=found.memory_gib,
        units=[_unit(found, unit) for unit in found.units],
        recipe=found.recipe,
        start=_start(found),
        notes=found.notes,
        sources=list(found.sources),
    )


def _unit(target: targets.Device, unit: targets.Unit) -> output_lists.Unit:
    able = {backend: registry.able(backend, target, unit) for backend in registry.names()}
    return output_lists.Unit(
        unit=unit.api,
        on=unit.on,
        precisions=list(unit.precisions),
        constraints={precision: dict(table) for precision, table in unit.constraints.items()},
        defaults={precision: dict(table) for precision, table in unit.defaults.items()},
        backends={backend: list(precisions) for backend, precisions in able.items() if precisions},
    )


def _start(target: targets.Device) -> str | None:
    """The command that gets somebody going for ``target``."""
    if target.recipe is not None:
        return f"phipipe run recipes/{target.recipe}.yaml --set device={target.name}"
    built = any(
        registry.able(name, target, unit) for unit in target.units for name in registry.names()
    )
    return f"phipipe init my-recipe.yaml --device {target.name}" if built else None


def backends() -> list[output_lists.Backend]:
    """One row per backend face."""
    rows = []
    for name in registry.names():
        face = registry.load(name)
        precisions = sorted(
            {p for table in face.precisions.values() for p in table}, key=PRECISIONS.index
        )
        rows.append(
            output_lists.Backend(
                backend=name,
                title=face.title,
                toolchain=face.toolchain,
                precisions=[*precisions],
                units=sorted(face.apis),
            )
        )
    return rows


def backend(name: str) -> output_lists.BackendDetails:
    """One backend: its own names for our precisions, and every option of ``quantize:``."""
    face = registry.load(name)
    return output_lists.BackendDetails(
        backend=name,
        title=face.title,
        toolchain=face.toolchain,
        precisions={
            api: {str(ours): own for ours, own in table.items()}
            for api, table in sorted(face.precisions.items())
        },
        quantize={
            key: output_lists.Option(
                default=field.get_default(call_default_factory=True),
                type=_type(field.annotation),
                what=field.description,
            )
            for key, field in face.options.model_fields.items()
        },
    )


def _type(annotation: Any) -> str:
    """An annotation as a recipe's author reads it: `true or false`, `16, 32 or 64`."""
    choices = [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) is Literal:
        return (
            " or ".join([", ".join(choices[:-1]), choices[-1]]) if len(choices) > 1 else choices[0]
        )
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return words.get(
        annotation, "list of text" if get_origin(annotation) in (list, tuple) else str(annotation)
    )


def toolchains(settings: Settings) -> list[output_lists.Toolchain]:
    """One row per toolchain: installed or not, packages, size."""
    from phipipe import toolchain

    return [toolchain_row(name, settings) for name in toolchain.names()]


def toolchain_row(name: str, settings: Settings) -> output_lists.Toolchain:
    """One toolchain.

    Raises:
        ToolchainError: there is no such toolchain.
    """
    from phipipe import toolchain

    found = toolchain.installed(name, settings)
    return output_lists.Toolchain(
        toolchain=name,
        installed=found is not None,
        packages=len(found.packages) if found else None,
        size_bytes=toolchain.size_bytes(name, settings) if found else None,
        path=str(found.path) if found else None,
        python=str(found.python) if found else None,
    )


def stored(store: Store) -> list[output_lists.Stored]:
    """One row per stored result and per unfinished download, last used first."""
    rows = [
        (usage.used, output_lists.Stored(
            key=usage.key, runs=usage.runs, repository=None, size_bytes=usage.size_bytes,
            created=output.iso(usage.created), used=output.iso(usage.used),
        ))
        for usage in store.usage()
    ]  # fmt: skip
    for part in downloads.unfinished(store.root):
        used = datetime.datetime.fromtimestamp(part.used_ns / 1e9, datetime.UTC)
        row = output_lists.Stored(
            key=None, runs=None, repository=part.repository, size_bytes=part.size_bytes,
            created=output.iso(part.since), used=output.iso(used),
        )  # fmt: skip
        rows.append((used, row))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0], reverse=True)]


def collected(report: GcReport, dry_run: bool) -> output_lists.Collected:
    """What a garbage collection did, or would do."""
    return output_lists.Collected(
        dry_run=dry_run,
        removed=list(report.removed),
        freed_bytes=report.freed_bytes,
        kept_bytes=report.kept_bytes,
    )


def doctor(settings: Settings, checks: Sequence[output_lists.Check] = ()) -> output_lists.Doctor:
    """What this machine has, what is missing, and how to get it."""
    from phipipe import toolchain
    from phipipe.measure import host

    disk = shutil.disk_usage(
        next(p for p in (settings.cache, *settings.cache.parents) if p.exists())
    )
    rows = toolchains(settings)
    missing = [
        row.toolchain for row in rows if not row.installed and toolchain.is_useful(row.toolchain)
    ]
    return output_lists.Doctor(
        phipipe=__version__,
        python=sys.version.split()[0],
        machine=host(),
        memory_available_bytes=hardware.available_bytes(),
        nvidia=hardware.nvidia(),
        cache=str(settings.cache),
        cache_free_bytes=disk.free,
        unfinished_downloads=[
            output_lists.Download(repository=part.repository, size_bytes=part.size_bytes)
            for part in downloads.unfinished(settings.cache)
        ],
        toolchains=rows,
        next=f"phipipe toolchain install {' '.join(missing)}" if missing else None,
        checks=list(checks),
    )
