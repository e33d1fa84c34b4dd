"""What a batch leaves to read: a table, ``batch.json``, JUnit's XML for CI systems, the board over
all artifacts.

``batch.json`` (``format`` 1) only ever grows: names that are there keep their meaning. Files appear
whole or not at all; ``batch.json`` comes last, so that whoever finds it finds the others.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe import (
    __version__,
    batch,
    board,
    board_html,
    claims,
    collect,
    output,
    package,
    refusals,
    report,
    room,
)
from phipipe.batch import Done
from phipipe.board import Entry
from phipipe.board_columns import COLUMNS, build_words
from phipipe.errors import PhipipeError, Skipped
from phipipe.metrics import METRICS, Metric
from phipipe.visible import in_template

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

TYPE = "phipipe-batch"
FORMAT = 1
BOARDS = "boards"
STATES = ("built", "cached", "gated", "failed", "refused", "skipped")
SHOWN = tuple(METRICS[name] for name in ("size_gib", "kld_mean", "top1", "decode_tokens_per_s"))
NOT_XML = re.compile(
    "[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # XML 1.0, 2.2: the rest cannot be written


def exit_code(done: Sequence[Done]) -> int:
    """The highest of the builds' exit codes, 0 where all went well: what comes later in a build
    counts as worse."""
    return max(
        (d.error.exit_code for d in done if d.error and not isinstance(d.error, Skipped)), default=0
    )


def summary(
    done: Sequence[Done], out: Path, started: datetime.datetime, finished: datetime.datetime
) -> dict[str, Any]:
    """The content of ``batch.json``."""
    return {
        "type": TYPE,
        "format": FORMAT,
        "version": __version__,
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "exit_code": exit_code(done),
        "states": {state: sum(d.state == state for d in done) for state in STATES},
        "recipes": list(dict.fromkeys(d.item.path.as_posix() for d in done)),
        "builds": [_build(d, out) for d in done],
    }


def _build(done: Done, out: Path) -> dict[str, Any]:
    stored = _package_of(done)
    error, made = done.error, done.item.build.recipe if done.item.build else None
    return {
        "name": done.item.name,
        "recipe": done.item.path.as_posix(),
        **{key: getattr(made, key, None) for key in ("device", "backend", "precision")},
        "state": done.state,
        "seconds": round(seconds(done), 3),
        "digest": stored and stored.digest,
        "version": done.version,
        "package": f"{done.item.name}/{done.version}" if done.version else None,
        "accepted": batch.latest(out / done.item.name) if done.item.build else None,
        "size_bytes": stored and stored.size_bytes,
        "metrics": {
            name: value for name, value in sorted(done.metrics.items()) if math.isfinite(value)
        },
        "before": dict(sorted(done.before.items())),
        "compared": sorted(done.compared),
        "regressions": [vars(one) for one in done.regressions],
        "error": error and {**output.plain(output.error_of(error)), "exit_code": error.exit_code},
    }


def _package_of(done: Done) -> Any:
    result = done.outcome.results.get("package") if done.outcome else None
    return result.stored if result else None


def seconds(done: Done) -> float:
    """Time that the build's own and shared steps took in this batch; nothing for what was
    cached."""
    results = done.outcome.results.values() if done.outcome else ()
    return sum(result.usage.get("seconds", 0.0) for result in results if not result.cached)


# --- the table


def table(done: Sequence[Done]) -> str:
    """One line per build with the change since the package accepted before, then what went
    wrong."""
    heads = ["build", "state", *(metric.heading for metric in SHOWN), "time"]
    rows = [heads, *(_row(one) for one in done)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ways = ["<", "<", *(">" for _ in SHOWN), ">"]
    lines = [
        "  ".join(f"{text:{way}{n}}" for text, way, n in zip(row, ways, widths, strict=True))
        for row in rows
    ]
    counted = [f"{n} {state}" for state in STATES if (n := sum(d.state == state for d in done))]
    total = f"{report.counted(len(done), 'build')}: {', '.join(counted)}"
    return "\n".join([*(line.rstrip() for line in lines), "", total])


def _row(done: Done) -> list[str]:
    took = seconds(done)
    cells = [_cell(done, metric) for metric in SHOWN]
    return [done.item.name, done.state, *cells, f"{report.number(took)} s" if took else "–"]


def _cell(done: Done, metric: Metric) -> str:
    """The figure, and its change where the one before was taken alike."""
    if metric.name not in done.metrics:
        return "–"
    value = done.metrics[metric.name]
    words = report.shown(metric, value)
    shown = " ".join(words) if metric.is_size else words[0]
    if metric.name not in done.compared:
        return shown
    was = done.before[metric.name]
    if was == value:
        return f"{shown} (=)"
    if was <= 0 or value >= 10 * was:
        return f"{shown} (× {report.number(value / was)})" if was > 0 else f"{shown} (was 0)"
    return f"{shown} ({100 * (value / was - 1):+.1f} %)"


# --- files


def write(done: Sequence[Done], out: Path, title: str, summary: Mapping[str, Any]) -> None:
    """Write ``junit.xml``, the board and ``batch.json`` into ``out``, each atomically.

    Raises:
        StoreError: the folder cannot be written.
    """
    pages, kept = boards(entries(done, out), out, title)
    texts = {
        "junit.xml": junit(done, str(summary["started"])),
        **pages,
        "batch.json": dump(summary),
    }
    with refusals.guard(out, remedy=room.KEEP_OUT), claims.claim(out, ".report.") as aside:
        for name, text in texts.items():
            written, target = aside / Path(name).name, out / name
            target.parent.mkdir(exist_ok=True)
            collect.write(written, text.encode())
            written.replace(target)
        for old in (out / BOARDS).iterdir() if (out / BOARDS).is_dir() else ():
            if f"{BOARDS}/{old.name}" not in kept and old.suffix in (".html", ".json"):
                old.unlink()


def dump(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def junit(done: Sequence[Done], started: str) -> str:
    """JUnit's XML: one test case for each build; a gate or regression is a failure, anything else
    an error."""
    from xml.etree import ElementTree

    kinds = [_kind(one) for one in done]
    totals = {
        "tests": len(done),
        **{f"{k}s" if k != "skipped" else k: kinds.count(k) for k in _KINDS},
    }
    attributes = {"name": "phipipe batch", **{name: str(n) for name, n in totals.items()}}
    attributes["time"] = f"{sum(map(seconds, done)):.3f}"
    root = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(root, "testsuite", {**attributes, "timestamp": started})
    for one, kind in zip(done, kinds, strict=True):
        _case(suite, one, kind)
    ElementTree.indent(root)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        + ElementTree.tostring(root, encoding="unicode")
        + "\n"
    )


_KINDS = ("failure", "error", "skipped")


def _kind(done: Done) -> str:
    return {"gated": "failure", "failed": "error", "refused": "error", "skipped": "skipped"}.get(
        done.state, ""
    )


def _case(suite: Element, done: Done, kind: str) -> None:
    from xml.etree import ElementTree

    named = {
        "classname": _xml(done.item.path.as_posix()),
        "name": _xml(done.item.name),
        "time": f"{seconds(done):.3f}",
    }
    case = ElementTree.SubElement(suite, "testcase", named)
    if done.error is None:
        return
    first = done.error.message.splitlines()[0] if done.error.message else "failed"
    told = {"message": _xml(first)} | (
        {} if kind == "skipped" else {"type": type(done.error).__name__}
    )
    said = ElementTree.SubElement(case, kind, told)
    hint = f"\ntry: {done.error.hint}" if done.error.hint else ""
    said.text = _xml(f"{done.error.message}{hint}\nexit code {done.error.exit_code}")


def _xml(text: str) -> str:
    """``text`` without what XML cannot hold, such as a tool's colour codes."""
    return NOT_XML.sub("�", text)


# --- the board


def entries(done: Sequence[Done], out: Path) -> list[Entry]:
    """Of every build of this batch, what it made or why not; of others in ``out``, what was
    accepted last."""
    found = [entry for one in done if (entry := _entry(one, out))]
    taken = {one.item.name for one in done}
    for pointer in sorted(out.glob(f"*/{batch.LATEST}")):
        if pointer.parent.name not in taken and (version := batch.latest(pointer.parent)):
            found += _read(pointer.parent / version)
    return found


def _entry(done: Done, out: Path) -> Entry | None:
    if done.version:
        return next(iter(_read(out / done.item.name / done.version)), None)
    if done.error is None or done.item.build is None:
        return None  # of a recipe that cannot be read, neither runtime nor precision is known
    made, planned = done.item.build.recipe, done.item.plan
    target = (planned.device.title, planned.api) if planned else ("", "")
    return board.failed(done.item.name, made.backend, made.precision, done.error.message, *target)


def _read(folder: Path) -> list[Entry]:
    try:
        return [board.from_manifest(package.read_manifest(folder))]
    except PhipipeError:  # damaged since: `phipipe verify` tells; it has no figures to show
        return []


def boards(every: Sequence[Entry], out: Path, title: str) -> tuple[dict[str, str], set[str]]:
    """File name → text of what is to be written, and all names that then belong there.

    One model and text are one board: ``board.html`` and ``board.json``. Several have one each in
    ``boards``, and ``board.html`` leads to them. A page whose ``.json`` holds these very entries is
    left as it is.
    """
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in board.done(every):
        key = (
            entry.source,
            entry.text,
            entry.tokens,
            entry.window,
            entry.skip,
            entry.source_digest,
            entry.text_digest,
        )
        groups.setdefault(key, []).append(entry)
    if len(groups) <= 1:
        return _page(every, out, "board", title), set()
    texts: dict[str, str] = {}
    members: dict[str, list[Entry]] = {}
    for _, group in sorted(groups.items()):
        slug = f"{BOARDS}/{_slug(group[0].source)}"
        name = next(n for i in count(1) if (n := slug if i == 1 else f"{slug}-{i}") not in members)
        members[name] = group
        texts |= _page(group, out, name, f"{title}: {group[0].source}")
    failed = [entry for entry in every if entry.error is not None]
    texts |= {"board.html": _contents(members, failed, title), "board.json": board.dump(every)}
    return texts, {f"{name}{suffix}" for name in members for suffix in (".html", ".json")}


def _page(entries: Sequence[Entry], out: Path, name: str, title: str) -> dict[str, str]:
    """A board's page and data, in the order in which they are written; nothing if they are there
    already."""
    page, data, text = f"{name}.html", f"{name}.json", board.dump(entries)
    with contextlib.suppress(OSError):
        if (out / page).is_file() and (out / data).read_bytes() == text.encode():
            return {}
    return {page: board_html.render(entries, title), data: text}


def _slug(source: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-")[:60] or "model"


def _contents(groups: Mapping[str, Sequence[Entry]], failed: Sequence[Entry], title: str) -> str:
    """The page that leads to the boards: builds of different models or texts do not compare."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from phipipe.card import TEMPLATES

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=True, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=in_template,
    )  # fmt: skip
    tables = [
        {
            "page": f"{name}.html",
            "source": first.source,
            "text": f"{first.tokens:,} tokens of “{first.text}” in windows of {first.window:,}",
            "answers": board.lines(board.answers(members)),
            "rows": [
                (entry, build_words(entry), [c.text(entry) for c in COLUMNS]) for entry in ranked
            ],
        }
        for name, members in groups.items()
        for first, ranked in [(members[0], board.ranked(members))]
    ]
    lost = [(entry.name, build_words(entry), board.one_line(entry.error or "")) for entry in failed]
    return environment.get_template("boards.html.j2").render(
        title=title, tables=tables, columns=COLUMNS, failed=lost
    )
