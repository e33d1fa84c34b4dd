"""Boards from runs and from finished packages: gathered, checked for comparability, written as
three files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from phipipe.board import board, file, html
from phipipe.board import entry as board_entry
from phipipe.board import text as board_text
from phipipe.board.entry import Entry
from phipipe.errors import PhipipeError, SourceError
from phipipe.execution.results import Outcome
from phipipe.files.json_files import read_bytes
from phipipe.package import package, places
from phipipe.signing import opening
from phipipe.store import claims, free_space, refusals

NAME = "board.json"


def of_outcomes(outcomes: Sequence[Outcome]) -> list[Entry]:
    """One entry for each build of a run, failed ones included."""
    entries = []
    for outcome in outcomes:
        build = outcome.plan.build
        if outcome.error is not None:
            facts, target = (
                (build.name, build.recipe.backend, build.recipe.precision),
                outcome.plan.device.title,
            )
            entries.append(
                board_entry.failed(*facts, outcome.error.message, target, outcome.plan.api)
            )
        elif outcome.package is not None:
            entries.append(board_entry.from_manifest(package.read_manifest(outcome.package)))
    return entries


def of_paths(paths: Sequence[Path], note: Callable[[str], None]) -> list[Entry]:
    """Entries of packages, of boards (``board.json`` or a folder that holds one), and of folders
    full of packages. ``note`` hears what is doubtful about a package.

    Raises:
        SourceError: a path is none of these, its content is damaged, or a package is not as it was
            packaged, or not signed as the user wants it.
    """
    return joined(entry for path in paths for entry in _of_path(path, note))


def joined(entries: Iterable[Entry]) -> list[Entry]:
    """``entries`` as one board has them.

    What was measured on its device takes the place of the build machine's figures of the same
    package.
    """
    every = list(entries)
    own = {(e.name, e.keys.get("gates")) for e in every if e.measured}
    return [e for e in every if e.measured or (e.name, e.keys.get("gates")) not in own]


def _of_path(path: Path, note: Callable[[str], None]) -> list[Entry]:
    if path.is_file():
        return _load(path)
    if (path / "manifest.json").is_file():
        return [board_entry.from_manifest(opening.open_(path, note))]
    if (path / NAME).is_file():
        return _load(path / NAME)
    inside = sorted(p.parent for p in path.glob("*/manifest.json")) if path.is_dir() else []
    if not inside:
        kind = "holds neither a package nor a board" if path.is_dir() else "does not exist"
        raise SourceError(
            f"`{path}` {kind}", hint="name package folders, a board.json, or the folder of a run"
        )
    return [board_entry.from_manifest(opening.open_(folder, note)) for folder in inside]


def _load(path: Path) -> list[Entry]:
    try:
        return file.load(read_bytes(path).decode("utf-8"))
    except (PhipipeError, UnicodeDecodeError) as error:
        message = error.message if isinstance(error, PhipipeError) else "it is not UTF-8"
        raise SourceError(f"`{path}`: {message}", hint=getattr(error, "hint", None)) from None


def write(entries: Sequence[Entry], folder: Path, title: str) -> Path:
    """Write ``board.json``, ``board.md`` and ``board.html`` into ``folder``; returns the page's
    path.

    Raises:
        SourceError: the entries were not measured on the same tokens of the same model.
        StoreError: the folder cannot be written, or is a package.
    """
    board.check_comparable(entries)
    places.refuse_inside(folder)
    texts = {
        NAME: file.dump(entries),
        "board.md": board_text.markdown(entries, title),
        "board.html": html.render(entries, title),
    }
    with refusals.guard(folder, remedy=free_space.KEEP_OUT):
        folder.mkdir(parents=True, exist_ok=True)
        # whatever has the name now, is replaced and not written into
        with claims.claim(folder, ".board.") as aside:
            for name, text in texts.items():
                (aside / name).write_bytes(text.encode())  # no newline translation
                (aside / name).replace(folder / name)
    return folder / "board.html"
