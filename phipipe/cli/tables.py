"""What the listing commands say to people: the data of ``facts`` as tables and outlines."""

from __future__ import annotations

import datetime
import re
import textwrap
from collections.abc import Mapping, Sequence

from phipipe.cli.grid import Row, terminal_width
from phipipe.cli.grid import table as table  # for who has rows of his own
from phipipe.output import lists
from phipipe.steps import Json
from phipipe.words import human


def devices(rows: Sequence[lists.Device]) -> str:
    """The list of devices."""
    return table(
        [{"device": row.device, "units": " ".join(row.units), "title": row.title} for row in rows]
    )


def device(row: lists.DeviceDetails) -> str:
    """All about one device."""
    builds: dict[str, str] = {}
    for unit in row.units:
        for backend, precisions in unit.backends.items():
            words = " ".join((unit.unit, *precisions))
            builds[backend] = f"{builds[backend]}; {words}" if backend in builds else words
    units = {
        u.unit: f"{u.on}: {', '.join(u.precisions)}" if u.on else ", ".join(u.precisions)
        for u in row.units
    }
    facts = {
        "device": row.device,
        "title": row.title,
        "processor": row.architecture,
        "systems": ", ".join(row.systems),
        "memory_gib": row.memory_gib,
        "units": units,
        "constraints": {unit.unit: unit.constraints for unit in row.units if unit.constraints},
        "defaults": {unit.unit: unit.defaults for unit in row.units if unit.defaults},
        "backends": dict(sorted(builds.items())) or "none of this version",
        "start from": row.start,
        "notes": row.notes,
        "sources": row.sources,
    }
    return outline(facts)


def backends(rows: Sequence[lists.Backend]) -> str:
    """The list of backends."""
    cells = [
        (row.backend, " ".join(row.precisions), " ".join(row.units), row.title) for row in rows
    ]
    return table(
        [dict(zip(("backend", "precisions", "units", "title"), row, strict=True)) for row in cells]
    )


def backend(row: lists.BackendDetails) -> str:
    """All about one backend."""
    options = {
        name: {
            "default": option.default,
            "type": option.type,
            "what": option.what,
            "when": option.advice,
            "values": option.values or None,
        }
        for name, option in row.quantize.items()
    }
    facts = {
        "backend": row.backend,
        "title": row.title,
        "suits": row.suits,
        "toolchain": row.toolchain,
        "precisions": row.precisions,
    }
    return outline({**facts, "quantize": options or "nothing to set"})


def toolchains(rows: Sequence[lists.Toolchain]) -> str:
    """The list of toolchains."""
    return table(
        [
            {
                "toolchain": row.toolchain,
                "state": _state(row),
                "size": "-" if row.size_bytes is None else human(row.size_bytes),
                "path": row.path or "-",
            }
            for row in rows
        ]
    )


def stored(rows: Sequence[lists.Stored]) -> str:
    """What the cache holds."""
    return table(
        [
            {
                "key": (row.key or "-")[:12],
                "step": _step(row.runs) or f"unfinished download of {row.repository}",
                "size": _size(row),
                "created": _ago(row.created),
                "used": _ago(row.used),
            }
            for row in rows
        ]
    )


def _size(row: lists.Stored) -> str:
    """What a result takes in the cache, and why that is not all of it."""
    said = {"in place": ", read in place", "let go": ", the rest let go"}
    return f"{human(row.size_bytes)}{said.get(row.state, '')}"


def settings(rows: Sequence[lists.Setting]) -> str:
    """Every setting."""
    return table(
        [
            {
                "setting": row.key or row.variable,
                "value": row.value or "–",
                "from": row.source,
                "what": f"{row.what} Default: {row.default}.",
            }
            for row in rows
        ]
    )


def settings_files(rows: Sequence[lists.SettingsFile]) -> str:
    """The files of settings."""
    states = {(True, True): "read", (True, False): "read, not trusted", (False, True): "not there"}
    cells = [
        {"file": row.path, "whose": row.kind, "state": states[row.exists, row.trusted]}
        for row in rows
    ]
    return table(cells) if cells else "no file: PHIPIPE_CONFIG is off"


def _step(runs: str | None) -> str:
    """A step's name; of an old record its module's address, without the packages."""
    return (runs or "").rpartition(".")[2]


def collected(row: lists.Collected) -> str:
    """What a garbage collection did."""
    verb = "would free" if row.dry_run else "freed"
    return f"{verb} {human(row.freed_bytes)}, {human(row.kept_bytes)} kept"


def runs(rows: Sequence[lists.Run]) -> str:
    """The list of runs."""
    names = ("id", "command", "started", "state", "exit_code", "seconds", "builds")
    shown = [{name: getattr(row, name) for name in names} for row in rows]
    whole_seconds = [{**row, "started": f"{row['started'][:19]}Z"} for row in shown]
    return table([cells(row) for row in whole_seconds])


def cells(row: Row) -> dict[str, Json]:
    """A row of data as people read it."""
    words = {
        name: ", ".join(value) if isinstance(value, list) else value for name, value in row.items()
    }
    return {name: "–" if value is None else value for name, value in words.items()}


def doctor(row: lists.Doctor) -> str:
    """What this machine has."""
    partial = [f"{part.repository}, {human(part.size_bytes)}" for part in row.unfinished_downloads]
    facts = {
        "phipipe": row.phipipe,
        "python": row.python,
        "machine": row.machine,
        "memory available": human(row.memory_available_bytes),
        "nvidia gpu": row.nvidia or "none",
        "cache": row.cache,
        "settings from": row.settings_files,
        "disk free for the cache": human(row.cache_free_bytes),
        "unfinished downloads": partial,
        "toolchains": {one.toolchain: _state(one) for one in row.toolchains},
        "next": f"{row.next}   (or on first use)" if row.next else "all set",
    }
    return outline(facts)


def _state(row: lists.Toolchain) -> str:
    return f"{row.packages} packages" if row.installed else "not installed"


def outline(row: Row) -> str:
    """One thing with all that is known of it; what is not known is left out. On a terminal long
    lines go on below their beginning."""
    width = terminal_width()
    lines = _outline(row)
    if width is None:
        return "\n".join(lines)
    return "\n".join(part for line in lines for part in _hung(line, width))


def _hung(line: str, width: int) -> list[str]:
    """``line`` in pieces of ``width`` columns; a value goes on where it began."""
    if len(line) <= width:
        return [line]
    found = re.match(r"( *\S+  +)\S", line)
    start = len(found.group(1)) if found else len(line) - len(line.lstrip()) + 2
    return textwrap.wrap(
        line.lstrip(),
        width,
        initial_indent=" " * (len(line) - len(line.lstrip())),
        subsequent_indent=" " * (start if start <= width // 2 else 4),
        break_on_hyphens=False,
        break_long_words=False,
    )


def _outline(row: Row, depth: int = 0) -> list[str]:
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


def _ago(moment: str) -> str:
    seconds = (
        datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(moment)
    ).total_seconds()
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
