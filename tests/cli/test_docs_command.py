"""The command that prints the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing.shell import Run

from phipipe.cli import docs
from phipipe.files import shipped


def test_without_a_topic_all_pages_are_listed(run: Run) -> None:
    code, out, _ = run("docs")
    assert code == 0
    for path in shipped.folder("docs").rglob("*.md"):
        assert path.stem in out
    assert "Options of each backend" in out


@pytest.mark.parametrize(
    "name", ["metrics", "reference/metrics", "docs/reference/metrics.md", "METRICS"]
)
def test_a_page_is_found_by_its_name_and_by_its_path(run: Run, name: str) -> None:
    code, out, _ = run("docs", name)
    assert code == 0
    assert out.startswith("# Metrics\n")
    assert "<!--" not in out, "comments are for tests"


def test_a_mistyped_page_is_guessed(run: Run) -> None:
    code, _, err = run("docs", "metrcs")
    assert code == 2
    assert "did you mean `metrics`" in err
    assert "`phipipe docs` lists all pages" in err


def test_a_name_that_two_pages_have_is_not_guessed() -> None:
    pages = dict.fromkeys(("how-to/size", "reference/size", "index", "reference/index"), Path())
    with pytest.raises(docs.RecipeError, match="several pages"):
        docs.find("size", pages)
    assert docs.find("index", pages) == ["index"]


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["lora"], "# Build a LoRA adapter with its base"),
        (["Adapter"], "# Build a LoRA adapter with its base"),
        (["chat", "templates"], "# Tokenizers and chat templates"),
        (["gguf"], "how-to/quantized "),
        (["gptq"], "reference/rules "),
    ],
)
def test_words_that_are_no_pages_name_find_the_pages_that_speak_of_them(
    run: Run, words: list[str], first: str
) -> None:
    code, out, err = run("docs", *words)
    assert (code, err) == (0, "")
    assert out.startswith(first)
    if "#" not in first:
        assert "how-to/quantized" in out
        assert out.endswith("phipipe docs TOPIC prints a page.\n")


def test_programs_get_the_pages_that_a_search_found(run: Run) -> None:
    code, out, _ = run("docs", "gguf", "--json")
    assert (code, json.loads(out)[0]["topic"]) == (0, "how-to/quantized")


def test_a_search_ranks_by_title_then_headings_then_text() -> None:
    texts = {
        "text": "# One\n\nA low-rank change, twice low rank.\n",
        "heading": "# Two\n\n## A low-rank change\n\nIt is one.\n",
        "code": "# Three\n\n```sh\n# low rank\nlow-rank\n```\n",
        "inside": "# Four\n\nA slow-ranked one.\n<!-- low-rank -->\n",
    }
    assert docs.search("LOW-RANK", texts) == ["heading", "text", "code"]
    assert docs.search("rank low", texts) == docs.search("low rank", texts)
    titled = {**texts, "title": "# Of low rank\n"}
    assert docs.search("low-rank", titled) == ["title"]
    assert docs.search("(", texts) == docs.search("", texts) == []
    many = {f"{number}": "# A page\n\nlow\n" for number in range(20)}
    assert len(docs.search("low", many)) == docs.MOST


def test_a_page_outside_of_the_documentation_is_not_printed(run: Run) -> None:
    for name in ("../README", "/etc/passwd", "reference/../../README"):
        code, out, _ = run("docs", name)
        assert (code, out) == (2, "")


def test_programs_get_the_text(run: Run) -> None:
    _, out, _ = run("docs", "exit-codes", "--json")
    page = json.loads(out)
    assert page["topic"] == "reference/exit-codes"
    assert page["title"] == "Exit codes"
    assert page["text"].startswith("# Exit codes")


def test_a_terminal_gets_the_page_set_out(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _ = run("docs", "events")
    assert code == 0
    assert "| --- |" not in out, "tables are drawn"
    assert "step_finished" in out


def test_comments_in_blocks_of_code_stay() -> None:
    text = "<!-- not run: x -->\n```html\n<!-- kept -->\n```\n"
    assert docs.plain(text) == "```html\n<!-- kept -->\n```\n"
