"""Packages that Python opens: the gate, figures, pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing import small_package

import phipipe
from phipipe import Package, SourceError, verify
from phipipe.api import pages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_package.written(tmp_path / "small")


def test_a_package_tells_what_it_is(folder: Path) -> None:
    package = Package.open(str(folder))
    assert (package.name, package.backend, package.precision) == ("small", "onnxruntime", "int4")
    assert (package.device, package.unit, package.path) == ("CPU", "cpu", folder)
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert package.size_bytes == sum(sizes.values()) - sizes["manifest.json"]
    assert package.manifest == json.loads((folder / "manifest.json").read_text("utf-8"))
    assert package.card == "# A package\n"
    assert repr(package) == "<Package small: onnxruntime int4 for CPU>"
    assert str(package).startswith("small: tiny-phi3 → int4 for CPU, onnxruntime; 10 files, ")


def test_figures_are_values_by_name_and_a_table_in_print(folder: Path) -> None:
    figures = Package.open(folder).figures
    assert figures["kld_mean"] == 0.01
    others = {"size_gib", "bits_per_weight", "decode_tokens_per_s", "ended", "loops"}
    assert set(figures) == {"kld_mean", *others}
    assert (figures.stderr, figures.get("top1")) == ({"kld_mean": 0.001, "loops": 0.5}, None)
    assert dict(figures) == figures.to_dict()
    assert "0.0100 ± 0.0010 nats" in str(figures)
    assert "0.0100 ± 0.0010 nats" in figures._repr_html_()
    with pytest.raises(KeyError):
        _ = figures["kld"]


def test_a_changed_package_does_not_open_and_says_what_changed(folder: Path) -> None:
    package = Package.open(folder)
    assert (package.verify(), verify(folder)) == ([], [])
    (folder / "added.txt").write_text("x")
    (finding,) = package.verify()
    assert finding.path == "added.txt"
    assert verify(str(folder)) == [finding]
    with pytest.raises(SourceError, match=r"added\.txt") as caught:
        Package.open(folder)
    assert caught.value.hint == f"phipipe verify {folder}"


def test_a_changed_package_does_not_chat(folder: Path) -> None:
    package = Package.open(folder)
    (folder / "added.txt").write_text("x")
    for call in (
        package.conversation,
        lambda: package.chat("hi"),
        package.evaluate,
        package.measure,
    ):
        with pytest.raises(SourceError, match=r"added\.txt"):
            call()


@pytest.mark.parametrize("given", ["", "nothing", "a\0b", "~nobody-of-that-name"])
def test_what_is_no_folder_is_a_source_error(given: str) -> None:
    for call in (Package.open, verify):
        with pytest.raises(SourceError):
            call(given)


def test_a_folder_that_is_no_package_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        Package.open(tmp_path)
    assert [finding.path for finding in verify(tmp_path)] == ["manifest.json"]


def test_a_folder_of_versions_opens_the_accepted_one(tmp_path: Path) -> None:
    home = tmp_path / "build"
    small_package.written(home / "0123456789abcdef")
    (home / "latest").write_text("0123456789abcdef\n")
    assert Package.open(home).path == home / "0123456789abcdef"
    (home / "latest").write_text("../elsewhere\n")
    with pytest.raises(SourceError):
        Package.open(home)


def test_an_empty_prompt_is_refused_before_a_model_is_loaded(folder: Path) -> None:
    with pytest.raises(phipipe.RecipeError, match="the prompt is empty"):
        Package.open(folder).chat(" \n")


def test_pages_show_strangers_text_and_obey_none() -> None:
    page = pages.table(("<b>", "x"), [("\x1b[31m<script>", "&")], "a\u202eb")
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page
    assert "\\x1b" in page


def test_a_package_page_has_its_heading_figures_and_place(folder: Path) -> None:
    page = Package.open(folder)._repr_html_()
    assert "tiny-phi3" in page
    assert "<table>" in page
    assert str(folder) in page


def test_counts_that_make_no_sense_are_refused(folder: Path) -> None:
    package = Package.open(folder)
    with pytest.raises(phipipe.RecipeError, match="tokens is 0"):
        package.chat("hi", tokens=0)
    with pytest.raises(phipipe.RecipeError, match="tokens is 10"):
        package.evaluate(tokens=10)
