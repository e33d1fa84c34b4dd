"""Blocks of code in README and docs, and the marks that say how a test treats them.

Commands for a shell are `sh`, or `bash`; a block without a language is what a command prints. A
page's commands run in order, in one folder and one shell, so that variables last. A comment on the
line before a block says otherwise:

    <!-- not run: needs a Snapdragon -->               why no test can run it
    <!-- tested by: tests/end_to_end/test_x.py -->     another test runs it
    <!-- exit 7 -->                                    it ends with this exit code
    <!-- setup: cp -r "$MODEL" my-model -->            run here, and not shown to readers

A block with a title, such as ```yaml title="my-recipe.yaml", is written to that file first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testing.places import ROOT

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<info>[^`\n]*)$")
MARK = re.compile(r"<!-- (?P<kind>not run|tested by|exit|setup)[: ]\s*(?P<words>.*?)\s*-->", re.S)
SHELLS = ("sh", "bash")
NOT_OURS = ("shell", "console", "zsh", "terminal")


@dataclass(frozen=True, kw_only=True)
class Block:
    """``mark`` and ``words`` are of the comment before it; "setup" has no fence of its own."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    mark: str = ""
    words: str = ""

    @property
    def place(self) -> str:
        """Where it begins, for people."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the page's test does something with it."""
        skipped = self.mark in ("not run", "tested by")
        return not skipped and (self.language in SHELLS or self.title is not None)


def pages() -> list[Path]:
    """README and every page of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Blocks and set-ups of ``page`` in order."""
    return sorted([*_fences(page), *_setups(page)], key=lambda block: block.line)


def without_blocks(text: str) -> str:
    """``text`` with its blocks and comments emptied; lines keep their numbers."""
    kept, inside = [], ""
    for line in text.split("\n"):
        fence = FENCE.match(line)
        if fence and not inside:
            inside = fence["fence"]
        elif fence and fence["fence"] == inside and not fence["info"]:
            inside = ""
        elif not inside:
            kept.append(line)
            continue
        kept.append("")
    return re.sub(r"<!--.*?-->", lambda m: "\n" * m[0].count("\n"), "\n".join(kept), flags=re.S)


def _fences(page: Path) -> Iterator[Block]:
    lines = page.read_text("utf-8").split("\n")
    begun: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines, 1):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if begun is None:
            begun = number, fence
        elif fence["fence"] == begun[1]["fence"] and not fence["info"]:
            yield _block(page, lines, *begun, last=number)
            begun = None
    assert begun is None, f"{page}:{begun and begun[0]}: a block without an end"


def _block(page: Path, lines: list[str], first: int, fence: re.Match[str], last: int) -> Block:
    indent = len(fence["indent"])
    body = [
        line[indent:] if not line[:indent].strip() else line for line in lines[first : last - 1]
    ]
    title = re.search(r'title="([^"]+)"', fence["info"])
    mark, words = _mark(lines, first)
    return Block(
        page=page,
        line=first,
        language=(fence["info"].split() or [""])[0],
        title=title and title[1],
        text="\n".join(body) + "\n",
        mark=mark,
        words=words,
    )


def _mark(lines: list[str], first: int) -> tuple[str, str]:
    """The mark that ends on the line before line ``first``, if it is one for a block."""
    before = "\n".join(lines[: first - 1]).rstrip()
    found = [m for m in MARK.finditer(before) if m.end() == len(before) and m["kind"] != "setup"]
    return (found[-1]["kind"], " ".join(found[-1]["words"].split())) if found else ("", "")


def _setups(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in MARK.finditer(text):
        if found["kind"] == "setup":
            line = text.count("\n", 0, found.start()) + 1
            yield Block(page=page, line=line, language="sh", title=None, text=f"{found['words']}\n")


def script(page: Path) -> str:
    """One script for bash that does what a reader of ``page`` does; it ends at the first failure
    and names the block."""
    parts = ["set -euo pipefail"]
    for block in blocks(page):
        if not block.is_run:
            continue
        parts.append(f"echo '==> {block.place}' >&2")
        if block.title is not None:
            parts.append(f"mkdir -p \"$(dirname '{block.title}')\"")
            parts.append(f"cat > '{block.title}' <<'END OF FILE'\n{block.text}END OF FILE")
        elif block.mark == "exit":
            wanted = int(block.words)
            parts.append(f"code=0; ( {block.text}) || code=$?")
            parts.append(f'[ "$code" = {wanted} ] || {{ echo "exit code $code" >&2; exit 1; }}')
        else:
            parts.append(block.text)
    return "\n".join(parts) + "\n"
