"""README and docs: what they say can be done is done, and what they point to is there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
from testing import doc_blocks, doc_commands
from testing.doc_blocks import Block
from testing.doc_page import Reader, anchors
from testing.places import ROOT

from phipipe import cli

PAGES = doc_blocks.pages()
RUN = [page for page in PAGES if any(block.is_run for block in doc_blocks.blocks(page))]
LINK = re.compile(r"!?\[[^\]]*\]\((?P<to>[^)\s]+)(?: \"[^\"]*\")?\)")
COMMANDS = re.compile(r"^(\$ |(pip|uv|export|cd|mkdir) )|^phipipe \w+( |$)", re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_stand_in_blocks_for_a_shell(page: Path) -> None:
    for block in doc_blocks.blocks(page):
        assert block.language not in doc_blocks.NOT_OURS, f"{block.place}: write it as sh"
        if block.language in ("", "text"):
            assert not COMMANDS.search(block.text), f"{block.place}: commands are sh"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_that_no_test_runs_says_why(page: Path) -> None:
    for block in doc_blocks.blocks(page):
        if block.mark == "not run":
            assert len(block.words.split()) > 1, f"{block.place}: `{block.words}` is no reason"
        if block.mark == "tested by":
            file, _, test = block.words.partition("::")
            there = (ROOT / file).is_file() and f"def {test}" in (ROOT / file).read_text("utf-8")
            assert there, f"{block.place}: there is no test {block.words}"


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_every_command_of_a_page_runs_as_printed(page: Path, reader: Reader) -> None:
    reader.follows(page)


def every_command() -> list[tuple[str, list[str], bool]]:
    """Place, arguments, and whether they are a whole command: of blocks, and of mentions."""
    found = []
    for page in PAGES:
        for block in doc_blocks.blocks(page):
            if block.language in doc_blocks.SHELLS:
                found += [(block.place, words, True) for words in doc_commands.in_shell(block.text)]
        for number, line in enumerate(
            doc_blocks.without_blocks(page.read_text("utf-8")).split("\n"), 1
        ):
            for code in re.findall(r"`([^`]+)`", line):
                place = f"{name_of(page)}:{number}"
                found += [(place, words, False) for words in doc_commands.in_words(code)]
    return found


def test_every_command_that_is_mentioned_exists_with_its_options() -> None:
    wrong = [
        f"{place}: phipipe {' '.join(words)}: {why}"
        for place, words, complete in every_command()
        if (why := doc_commands.complaint(words, complete=complete))
    ]
    assert not wrong, "\n".join(wrong)


def leaves(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    inner = [leaves(found, f"{path} {name}") for name, found in command.commands.items()]
    return [leaf for some in inner for leaf in some]


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(p, c, id=p) for p, c in leaves(cli.cli, "phipipe")]
)
def test_the_example_of_a_commands_help_is_a_command(path: str, command: click.Command) -> None:
    example = (command.epilog or "").replace("Example:", "").strip()
    calls = list(doc_commands.in_shell(example.replace('eval "$(', "").replace(')"', "")))
    assert calls, f"{path} has no example"
    for words in calls:
        assert doc_commands.complaint(words, complete=True) is None


def test_a_wrong_option_and_a_wrong_command_are_found() -> None:
    (words,) = doc_commands.in_shell("A=b .venv/bin/phipipe run x.yaml --sett a=b | cat")
    assert words == ["run", "x.yaml", "--sett", "a=b"]
    assert "--sett" in str(doc_commands.complaint(words, complete=True))
    assert "rum" in str(doc_commands.complaint(["rum", "x.yaml"], complete=True))
    assert doc_commands.complaint(["run"], complete=True)
    assert doc_commands.complaint(["run"], complete=False) is None
    assert len(list(doc_commands.in_words("phipipe cache ls|verify|gc [--json]"))) == 3


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for number, line in enumerate(
        doc_blocks.without_blocks(page.read_text("utf-8")).split("\n"), 1
    ):
        for found in LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            where = f"{name_of(page)}:{number}: {found['to']}"
            address = urlsplit(found["to"])
            if address.scheme:
                assert address.scheme in ("https", "mailto"), where
                assert address.scheme == "mailto" or "." in address.netloc, where
                continue
            target = (page.parent / address.path).resolve() if address.path else page
            assert target.exists(), where
            if address.fragment:
                assert address.fragment in anchors(target), where


def test_marks_titles_and_set_ups_are_read(tmp_path: Path) -> None:
    page = ROOT / "docs" / "imagined.md"
    text = (
        "<!-- not run: needs a phone -->\n```sh\nadb push\n```\n\n"
        '<!-- setup: cp -r "$MODEL" mine -->\n\n'
        '```yaml title="mine.yaml"\na: 1\n```\n\n<!-- exit 7 -->\n```sh\nexit 7\n```\n'
    )
    here = tmp_path / page.name
    here.write_text(text, "utf-8")
    found: list[Block] = doc_blocks.blocks(here)
    assert [(b.language, b.mark, b.title) for b in found] == [
        ("sh", "not run", None),
        ("sh", "", None),
        ("yaml", "", "mine.yaml"),
        ("sh", "exit", None),
    ]
    assert [block.is_run for block in found] == [False, True, True, True]
