"""The generated pages of the documentation.

    python -m phipipe.maintain.reference --write docs | --check docs

``reference/`` is made of the code: models of recipes and outputs, faces of backends, devices,
rules, metrics, commands. ``changelog.md`` is the repository's CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from phipipe.maintain import (
    command_page,
    python_page,
    schema_pages,
    settings_page,
    target_pages,
    word_pages,
)
from phipipe.maintain.markdown import MADE, page, table

ROOT = Path(__file__).parents[2]
PAGES: Mapping[str, tuple[str, Callable[[], str]]] = {
    "commands": ("every command with its options", command_page.commands),
    "recipe": ("every key of a recipe", schema_pages.recipe),
    "options": ("every option of every backend, and when to use which", target_pages.options),
    "devices": ("every device, and what can be built for it", target_pages.devices),
    "models": ("the Phi family against the backends", target_pages.models),
    "metrics": ("every figure of a build in plain words", word_pages.metric_page),
    "rules": ("every rule and fix-up with its reason", word_pages.rules),
    "exit-codes": ("how a command ended, and what to do", word_pages.exit_codes),
    "json": ("what commands print with `--json`", schema_pages.outputs),
    "events": ("what a run tells while it works", word_pages.event_page),
    "settings": ("environment variables and files", settings_page.settings),
    "python": ("the Python API", python_page.python),
}


def pages() -> dict[Path, str]:
    """Every generated page, by its path in the folder of the documentation."""
    made = {Path("reference") / f"{name}.md": make() for name, (_, make) in PAGES.items()}
    changes = f"{MADE}\n\n{(ROOT / 'CHANGELOG.md').read_text('utf-8')}"
    return made | {Path("reference") / "index.md": _index(), Path("changelog.md"): changes}


def _index() -> str:
    rows = [[f"[{name}]({name}.md)", words] for name, (words, _) in PAGES.items()]
    intro = (
        "These pages are made from the code, and a test checks that they are up to date. In the "
        "terminal, `phipipe docs TOPIC` prints a page."
    )
    return page("Reference", intro, table(["page", "holds"], rows))


def stale(folder: Path) -> list[Path]:
    """Pages in ``folder`` that are not those of today, or that nothing generates any more."""
    wanted = pages()
    there = {path.relative_to(folder) for path in (folder / "reference").glob("*.md")}
    return sorted(
        [path for path, text in wanted.items() if _content(folder / path) != text]
        + [path for path in there if path not in wanted]
    )


def _content(path: Path) -> str | None:
    return path.read_text("utf-8") if path.is_file() else None


def write(folder: Path) -> None:
    """Write every page into ``folder``, and remove what nothing generates any more."""
    wanted = pages()
    (folder / "reference").mkdir(parents=True, exist_ok=True)
    for path in stale(folder):
        if path in wanted:
            (folder / path).write_text(wanted[path], "utf-8", newline="\n")
        else:
            (folder / path).unlink()


def main() -> int:
    """Write the pages, or say which are out of date (exit code 1 if any is)."""
    parser = argparse.ArgumentParser(description="The generated pages of the documentation.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FOLDER")
    action.add_argument("--check", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
        return 0
    old = stale(arguments.check)
    for path in old:
        print(f"{arguments.check / path} is out of date")
    if old:
        print(f"python -m phipipe.maintain.reference --write {arguments.check}")
    return int(bool(old))


if __name__ == "__main__":
    sys.exit(main())
