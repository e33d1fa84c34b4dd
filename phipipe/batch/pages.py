"""The boards over a batch's folder, one for each model and text, and the page that leads there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

from phipipe.batch import folder as batch_folder
from phipipe.batch.accept import Done
from phipipe.board import board, colours, file, html, origin
from phipipe.board import entry as board_entry
from phipipe.board.entry import Entry
from phipipe.errors import PhipipeError
from phipipe.files import pages
from phipipe.package import package
from phipipe.visible import in_template

BOARDS = "boards"


def entries(done: Sequence[Done], out: Path) -> list[Entry]:
    """Of every build of this batch, what it made or why not; of others in ``out``, what was
    accepted last."""
    every = [entry for one in done if (entry := _entry(one, out))]
    taken = {one.item.name for one in done}
    for pointer in sorted(out.glob(f"*/{batch_folder.LATEST}")):
        if pointer.parent.name not in taken and (version := batch_folder.latest(pointer.parent)):
            every += _read(pointer.parent / version)
    return every


def _entry(done: Done, out: Path) -> Entry | None:
    if done.version:
        return next(iter(_read(out / done.item.name / done.version)), None)
    if done.error is None or done.item.build is None:
        return None  # of a recipe that cannot be read, neither runtime nor precision is known
    recipe, planned = done.item.build.recipe, done.item.plan
    target = (planned.device.title, planned.api) if planned else ("", "")
    return board_entry.failed(
        done.item.name, recipe.backend, recipe.precision, done.error.message, *target
    )


def _read(folder: Path) -> list[Entry]:
    try:
        return [board_entry.from_manifest(package.read_manifest(folder))]
    except PhipipeError:  # damaged since: `phipipe verify` tells; it has no figures to show
        return []


def boards(every: Sequence[Entry], out: Path, title: str) -> tuple[dict[str, str], set[str]]:
    """File name → text of what is to be written, and all names that then belong there.

    One model and text are one board: ``board.html`` and ``board.json``. Several have one each in
    ``boards``, and ``board.html`` leads to them. A page whose ``.json`` holds these very entries is
    left as it is.
    """
    groups: dict[tuple[str | int, ...], list[Entry]] = {}
    for entry in board.done(every):
        key = (
            entry.source,
            entry.text,
            entry.tokens,
            bool(entry.windows),
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
    texts |= {"board.html": _contents(members, failed, title), "board.json": file.dump(every)}
    return texts, {f"{name}{suffix}" for name in members for suffix in (".html", ".json")}


def _page(entries: Sequence[Entry], out: Path, name: str, title: str) -> dict[str, str]:
    """A board's page and data, in the order in which they are written; nothing if they are there
    already."""
    page, data, text = f"{name}.html", f"{name}.json", file.dump(entries)
    with contextlib.suppress(OSError):
        if (out / page).is_file() and (out / data).read_bytes() == text.encode():
            return {}
    return {page: html.render(entries, title), data: text}


def _slug(source: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-")[:60] or "model"


def _contents(groups: Mapping[str, Sequence[Entry]], failed: Sequence[Entry], title: str) -> str:
    """The page that leads to the boards: builds of different models or texts do not compare."""
    environment = pages.environment(in_template, is_html=True)
    places = colours.families([entry for members in groups.values() for entry in members])
    tables = [
        {
            "page": f"{name}.html",
            "source": members[0].source,
            "text": f"{members[0].tokens:,} tokens of “{members[0].text}” in windows of "
            f"{members[0].window:,}",
            **_shown(members, places),
        }
        for name, members in groups.items()
    ]
    return environment.get_template("batch/boards.html.j2").render(
        html.frame([entry for members in groups.values() for entry in members]),
        title=title,
        made=origin.words(),
        tables=tables,
        failed=_shown(failed, colours.families(failed))["rows"],
    )


def _shown(members: Sequence[Entry], places: Mapping[str, int]) -> dict[str, object]:
    every = board.ranked(members)
    return html.shown(every, board.answers(every), places)
