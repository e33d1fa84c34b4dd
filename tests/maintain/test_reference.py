"""The generated pages: up to date, whole, and in words that Markdown leaves alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from testing.places import ROOT

from phipipe import backends, metrics
from phipipe.backends.llamacpp.types import TYPES
from phipipe.cli import cli, explain, schemas
from phipipe.evaluate.reports import Metrics
from phipipe.execution import events
from phipipe.maintain import markdown, reference
from phipipe.recipe import device
from phipipe.recipe.recipe import Recipe

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {path.stem: text for path, text in reference.pages().items()}


def test_the_pages_are_those_of_today() -> None:
    assert not reference.stale(DOCS), "python -m phipipe.maintain.reference --write docs"


@pytest.mark.parametrize("name", backends.names())
def test_every_option_says_when_to_use_which(name: str) -> None:
    face = backends.load(name)
    assert set(face.advice) == set(face.options.model_fields)
    assert face.suits


def test_every_type_of_llama_cpp_has_a_line(pages: dict[str, str]) -> None:
    for name, kind in TYPES.items():
        assert f"| `{name}` | {kind.bits:g} |" in pages["options"]
        assert kind.use.endswith(".")


def test_nothing_is_missing(pages: dict[str, str]) -> None:
    for name in Recipe.model_fields:
        assert f"| `{name}` |" in pages["recipe"]
    for name in (*device.names(), *backends.names()):
        assert f"\n## {name}\n" in pages["devices"] + pages["options"]
    for name in metrics.METRICS:
        assert f"\n### {name}\n" in pages["metrics"]
    for one in explain.explanations().values():
        assert f"# {one.id}\n" in pages["rules"] + pages["exit-codes"].replace("Exit code ", "")


def test_every_event_that_is_written_is_on_its_page(pages: dict[str, str]) -> None:
    source = Path(events.__file__).read_text("utf-8")
    for name in re.findall(r'self\.write\(\s*"(\w+)"', source):
        assert f"| `{name}` |" in pages["events"]


def test_every_command_has_its_help(pages: dict[str, str]) -> None:
    for name, command in cli.commands.items():
        inner = list(command.commands) if isinstance(command, click.Group) else [""]
        for one in inner:
            assert f"\n## phipipe {name} {one}".rstrip() in pages["commands"]
    assert "Example:" in pages["commands"]


def test_the_pages_do_not_depend_on_this_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "phipipe.maintain.reference", "--check", str(DOCS)]
    environment = {"COLUMNS": "40", "NO_COLOR": "1", "PATH": "", "PHIPIPE_CACHE": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_pages_are_written_and_old_ones_removed(tmp_path: Path) -> None:
    reference.write(tmp_path)
    assert not reference.stale(tmp_path)
    (tmp_path / "reference" / "gone.md").write_text("# Gone\n", "utf-8")
    (tmp_path / "reference" / "json.md").write_text("# Changed\n", "utf-8")
    assert [path.name for path in reference.stale(tmp_path)] == ["gone.md", "json.md"]
    reference.write(tmp_path)
    assert not reference.stale(tmp_path)
    assert not (tmp_path / "reference" / "gone.md").exists()


def test_agents_are_told_no_field_and_no_exit_code_that_is_none() -> None:
    text = (DOCS / "agents.md").read_text("utf-8")
    assert len(text.splitlines()) <= 100
    fields = {
        part for part in json.dumps(schemas.of_command("run")).split('"') if part.isidentifier()
    }
    inner = {*metrics.METRICS, *Metrics.__annotations__}
    table = text.partition("| field | holds |")[2].partition("\n\n")[0]
    for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE)[1:]:
        for name in re.findall(r"`([\w.]+)`", cell):
            assert set(name.split(".")) <= fields | inner, name
    codes = text.partition("## Exit codes")[2].partition("## ")[0]
    told = {
        code for row in re.findall(r"^\| ([\d, ]+) \|", codes, re.M) for code in row.split(", ")
    }
    known = {one.id for one in explain.explanations().values() if one.kind == "exit code"}
    assert known - told == {"1"}, "doctor alone ends with 1"


def test_words_become_markdown() -> None:
    assert markdown.sentence("mlx-lm does ``this``") == "mlx-lm does `this`."
    assert markdown.sentence("set `x`\nhere") == "Set `x` here."
    assert markdown.table(["a", "b"], [["x | y", ""]]) == "| a |\n| --- |\n| x \\| y |"
    assert markdown.table(["a"], []) == ""
    assert markdown.codes(["a", "b", "c"], " or ") == "`a`, `b` or `c`"
