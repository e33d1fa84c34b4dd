"""The command that prints the documentation, page by page."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from phipipe.cli import answers, completions
from phipipe.cli.groups import command
from phipipe.cli.messages import echo
from phipipe.cli.options import AS_JSON
from phipipe.errors import RecipeError

if TYPE_CHECKING:
    from phipipe.output.lists import Topic

WIDTH = 100  # of a page on a wide terminal
COMMENT = re.compile(r"<!--.*?-->\n*", re.DOTALL)
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


@command("phipipe docs metrics")
@click.argument("name", metavar="[TOPIC]", required=False, shell_complete=completions.topics)
@AS_JSON
def docs(name: str | None, as_json: bool) -> None:
    """Print a page of the documentation. Without TOPIC: list all of them.

    TOPIC is a page's name, such as `metrics`, or its path, such as `reference/metrics`.
    """
    from phipipe.output import lists

    every = topics()
    if name is None:
        rows = [_row(topic, path) for topic, path in every.items()]
        answers.give(rows) if as_json else echo(_listing(rows))
        return
    topic = find(name, list(every))
    text = every[topic].read_text("utf-8")
    if as_json:
        answers.give(lists.Page(topic=topic, title=title(text), text=plain(text)))
    else:
        _show(plain(text))


def topics() -> dict[str, Path]:
    """Every page by its path in the documentation, without its ending.

    Raises:
        StoreError: this phipipe came without its documentation.
    """
    from phipipe.files import shipped

    home = shipped.folder("docs")
    pages = {path.relative_to(home).with_suffix("").as_posix(): path for path in home.rglob("*.md")}
    return dict(sorted(pages.items(), key=lambda page: ("/" in page[0], page[0])))


def find(name: str, known: list[str]) -> str:
    """The topic that ``name`` means: its path, or the last part of it.

    Raises:
        RecipeError: there is none, or there are several.
    """
    from phipipe.suggestions import near, shorten

    wanted = name.strip().strip("/").removesuffix(".md").removeprefix("docs/").casefold()
    short = [topic for topic in known if topic.rpartition("/")[2] == wanted]
    found = [wanted] if wanted in known else short
    if len(found) > 1:
        raise RecipeError(
            f"several pages are called `{wanted}`: {', '.join(f'`{one}`' for one in found)}",
            hint=f"phipipe docs {found[0]}",
        )
    if not found:
        lasts = [topic.rpartition("/")[2] for topic in known]
        guess = near(wanted, known) or near(wanted, lasts)
        raise RecipeError(
            f"there is no page `{shorten(name)}`{guess}", hint="`phipipe docs` lists all pages"
        )
    return found[0]


def title(text: str) -> str:
    """A page's first heading."""
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def plain(text: str) -> str:
    """A page without its comments, which are for tests."""
    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else COMMENT.sub("", part) for part in parts)


def _row(topic: str, path: Path) -> Topic:
    from phipipe.output import lists

    return lists.Topic(topic=topic, title=title(path.read_text("utf-8")))


def _listing(rows: list[Topic]) -> str:
    width = max(len(row.topic) for row in rows)
    lines = [f"{row.topic:{width}}  {row.title}" for row in rows]
    return "\n".join([*lines, "", "phipipe docs TOPIC prints a page."])


def _show(text: str) -> None:
    """Set out on a terminal, as it is in a pipe."""
    if not sys.stdout.isatty():
        echo(text.rstrip("\n"))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.print(Markdown(text, hyperlinks=False), width=min(WIDTH, console.width))
