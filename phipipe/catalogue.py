"""Facts for the listing commands: devices, backends, toolchains, cache, this machine. Rows in, text out."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from phipipe import __version__, downloads, hardware
from phipipe import backends as registry
from phipipe import device as targets
from phipipe.settings import Settings
from phipipe.store import GcReport, Store

Row = dict[str, Any]
PRECISIONS = ("int4", "int8", "fp16", "fp32")


def devices() -> list[Row]:
    """One row per device file."""
    return [
        {"device": name, "units": " ".join(u.api for u in found.units), "title": found.title}
        for name in targets.names()
        for found in [targets.load(name)]
    ]


def device(name: str) -> Row:
    """One device: its units, what builds for it here, and where the facts come from."""
    found = targets.load(name)
    builds = {}
    for backend in registry.names():
        able = ((unit.api, registry.able(backend, found, unit)) for unit in found.units)
        if words := [" ".join((api, *precisions)) for api, precisions in able if precisions]:
            builds[backend] = "; ".join(words)
    return {
        "device": name,
        "title": found.title,
        "processor": found.architecture,
        "systems": ", ".join(found.systems),
        "memory_gib": found.memory_gib,
        "units": {
            u.api: f"{u.on}: {', '.join(u.precisions)}" if u.on else ", ".join(u.precisions) for u in found.units
        },
        "constraints": {u.api: dict(u.constraints) for u in found.units if u.constraints},
        "defaults": {u.api: dict(u.defaults) for u in found.units if u.defaults},
        "backends": builds or "none of this version",
        "start from": _start(found, builds),
        "notes": found.notes,
        "sources": list(found.sources),
    }


def _start(target: targets.Device, builds: Mapping[str, str]) -> str | None:
    """The command that gets somebody going for ``target``."""
    if target.recipe is not None:
        return f"phipipe run recipes/{target.recipe}.yaml --set device={target.name}"
    return f"phipipe init my-recipe.yaml --device {target.name} --backend {next(iter(builds))}" if builds else None


def backends() -> list[Row]:
    """One row per backend module."""
    rows = []
    for name in registry.names():
        module = registry.load(name)
        precisions = sorted({p for table in module.PRECISIONS.values() for p in table}, key=PRECISIONS.index)
        units = " ".join(sorted(module.APIS))
        rows.append({"backend": name, "precisions": " ".join(precisions), "units": units, "title": module.TITLE})
    return rows


def backend(name: str) -> Row:
    """One backend: its own names for our precisions, and every option of ``quantize:``."""
    module = registry.load(name)
    options = {
        key: {
            "default": field.get_default(call_default_factory=True),
            "type": _type(field.annotation),
            "what": field.description,
        }
        for key, field in module.Options.model_fields.items()
    }
    return {
        "backend": name,
        "title": module.TITLE,
        "toolchain": module.TOOLCHAIN,
        "precisions": {api: dict(table) for api, table in sorted(module.PRECISIONS.items())},
        "quantize": options or "nothing to set",
    }


def _type(annotation: Any) -> str:
    """An annotation as a recipe's author reads it: `true or false`, `16, 32 or 64`."""
    choices = [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) is Literal:
        return " or ".join([", ".join(choices[:-1]), choices[-1]]) if len(choices) > 1 else choices[0]
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return words.get(annotation, "list of text" if get_origin(annotation) in (list, tuple) else str(annotation))


def toolchains(settings: Settings) -> list[Row]:
    """One row per toolchain: installed or not, packages, size."""
    from phipipe import toolchain

    rows = []
    for name in toolchain.names():
        found = toolchain.installed(name, settings)
        size = human(toolchain.size_bytes(name, settings)) if found else "-"
        state = f"{len(found.packages)} packages" if found else "not installed"
        rows.append({"toolchain": name, "state": state, "size": size, "path": str(found.path) if found else "-"})
    return rows


def stored(store: Store) -> list[Row]:
    """One row per stored result and per unfinished download, last used first."""
    rows = [(u.used, u.key[:12], u.runs.rpartition(".")[2], u.size_bytes, u.created) for u in store.usage()]
    for part in downloads.found(store.root):
        used = datetime.datetime.fromtimestamp(part.used_ns / 1e9, datetime.UTC)
        rows.append((used, "-", f"unfinished download of {part.repository}", part.size_bytes, part.since))
    return [
        {"key": key, "step": step, "size": human(size), "created": _ago(created), "used": _ago(used)}
        for used, key, step, size, created in sorted(rows, reverse=True)
    ]


def collected(report: GcReport) -> Row:
    """What a garbage collection did, or would do."""
    return {
        "removed": list(report.removed),
        "freed_bytes": report.freed_bytes,
        "kept_bytes": report.kept_bytes,
        "freed": human(report.freed_bytes),
        "kept": human(report.kept_bytes),
    }


def doctor(settings: Settings) -> Row:
    """What this machine has, what is missing, and how to get it."""
    from phipipe.measure import host

    disk = shutil.disk_usage(next(p for p in (settings.cache, *settings.cache.parents) if p.exists()))
    lines = {row["toolchain"]: row["state"] for row in toolchains(settings)}
    missing = [name for name, state in lines.items() if state == "not installed"]
    partial = downloads.found(settings.cache)
    return {
        "phipipe": __version__,
        "python": sys.version.split()[0],
        "machine": host(),
        "memory available": human(hardware.available_bytes()),
        "nvidia gpu": hardware.nvidia() or "none",
        "cache": str(settings.cache),
        "disk free for the cache": human(disk.free),
        "unfinished downloads": [f"{part.repository}, {human(part.size_bytes)}" for part in partial],
        "toolchains": lines,
        "next": f"phipipe toolchain install {' '.join(missing)}   (or on first use)" if missing else "all set",
    }


def text(rows: Row | Sequence[Row]) -> str:
    """Aligned text: a table for many rows, an outline for one."""
    if isinstance(rows, Mapping):
        return "\n".join(_outline(rows))
    if not rows:
        return "nothing yet"
    columns = list(rows[0])
    cells = [columns, *([str(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _outline(row: Mapping[str, Any], depth: int = 0) -> list[str]:
    indent, width = "  " * depth, max((len(str(k)) for k in row), default=0)
    lines = []
    for key, value in row.items():
        if value is None or value in ({}, []):
            continue
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}", *_outline(value, depth + 1)]
        elif isinstance(value, list):
            lines += [f"{indent}{key}", *(f"{indent}  {item}" for item in value)]
        else:
            lines.append(f"{indent}{key!s:{width}}  {value}")
    return lines


def human(size: int) -> str:
    """Bytes as people read them, binary units."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def _ago(moment: datetime.datetime) -> str:
    seconds = (datetime.datetime.now(datetime.UTC) - moment).total_seconds()
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
