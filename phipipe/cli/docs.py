"""The command that prints the documentation, page by page."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
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

MOST = 8  # pages that a search lists
HEADING = re.compile(r"^#{1,4} +(.+)$", re.MULTILINE)
WIDTH = 100  # of a page on a wide terminal
COMMENT = re.compile(r"<!--.*?-->\n*", re.DOTALL)
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


@command("phipipe docs metrics")
@click.argument("words", metavar="[TOPIC|WORD...]", nargs=-1, shell_complete=completions.topics)
@AS_JSON
def docs(words: tuple[str, ...], as_json: bool) -> None:
    """Print a page of the documentation. Without TOPIC: list all of them.

    TOPIC is a page's name, such as `metrics`, or its path, such as `reference/metrics`. Other
    words are looked for in all pages: the one page that has them in its title is printed, else
    those that speak of them are listed, the most about them first.
    """
    from phipipe.output import lists

    every = topics()
    name = " ".join(words).strip()
    found = find(name, every) if name else list(every)
    if name and len(found) == 1:
        text = every[found[0]].read_text("utf-8")
        page = lists.Page(topic=found[0], title=title(text), text=plain(text))
        answers.give(page) if as_json else _show(page.text)
        return
    rows = [_row(topic, every[topic]) for topic in found]
    answers.give(rows) if as_json else echo(_listing(rows))


def topics() -> dict[str, Path]:
    """Every page by its path in the documentation, without its ending.

    Raises:
        StoreError: this phipipe came without its documentation.
    """
    from phipipe.files import shipped

    home = shipped.folder("docs")
    pages = {path.relative_to(home).with_suffix("").as_posix(): path for path in home.rglob("*.md")}
    return dict(sorted(pages.items(), key=lambda page: ("/" in page[0], page[0])))


def find(name: str, pages: Mapping[str, Path]) -> list[str]:
    """The topic that ``name`` means: its path, or the last part of it; else those of the ``pages``
    that speak of its words.

    Raises:
        RecipeError: there is none, or several have that name.
    """
    from phipipe.suggestions import near, shorten

    known = list(pages)
    wanted = name.strip().strip("/").removesuffix(".md").removeprefix("docs/").casefold()
    short = [topic for topic in known if topic.rpartition("/")[2] == wanted]
    found = [wanted] if wanted in known else short
    if len(found) > 1:
        raise RecipeError(
            f"several pages are called `{wanted}`: {', '.join(f'`{one}`' for one in found)}",
            hint=f"phipipe docs {found[0]}",
        )
    found = found or search(name, {topic: page.read_text("utf-8") for topic, page in pages.items()})
    if not found:
        lasts = [topic.rpartition("/")[2] for topic in known]
        guess = near(wanted, known) or near(wanted, lasts)
        raise RecipeError(
            f"there is no page `{shorten(name)}`, and none speaks of it{guess}",
            hint="`phipipe docs` lists all pages",
        )
    return found


def search(name: str, texts: Mapping[str, str]) -> list[str]:
    """Topics of the ``texts`` in which a word begins with each word of ``name``: the one that has
    them in its title, else up to ``MOST``, those with the most headings about them first.

    Capitals, and the kind of dash, do not matter.
    """
    patterns = [
        re.compile(rf"(?<![^\W_]){re.escape(word)}".replace(r"\-", "[-_ ]?"), re.IGNORECASE)
        for word in name.split()
    ]
    if not patterns:
        return []
    about: dict[str, tuple[int, int, int]] = {}
    for topic, text in texts.items():
        said = plain(text)
        heads = HEADING.findall(FENCE.sub("", said))
        counts = [len(pattern.findall(said)) for pattern in patterns]
        if all(counts):
            named = [all(p.search(head) for p in patterns) for head in heads]
            about[topic] = (sum(named[:1]), sum(named), min(counts))
    ranked = sorted(about, key=lambda topic: about[topic], reverse=True)
    titled = [topic for topic in ranked if about[topic][0]]
    return titled if len(titled) == 1 else ranked[:MOST]


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
