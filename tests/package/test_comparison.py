"""Two packages that should be one: every file that differs is named, and the likely reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from testing.kitchen import TOOLS, Kitchen

from phipipe.package import comparison, package
from phipipe.package.comparison import Side


def side(folder: Path) -> Side:
    return Side(folder=folder, manifest=package.read_manifest(folder))


def compared(tmp_path: Path, change: Callable[[Kitchen], object]) -> dict[str, str]:
    first, second = Kitchen(tmp_path / "one"), Kitchen(tmp_path / "other")
    change(second)
    sides = [side(kitchen.cook()) for kitchen in (first, second)]
    return {one.path: one.message for one in comparison.differences(*sides)}


def test_the_same_build_is_the_same_package(tmp_path: Path) -> None:
    assert compared(tmp_path, lambda kitchen: None) == {}


def test_a_changed_file_is_named_and_the_sums_that_follow_are_not(tmp_path: Path) -> None:
    found = compared(tmp_path, lambda k: (k.artifact / "model.onnx.data").write_bytes(b"\x07" * 99))
    assert found == {
        "model.onnx.data": "has other content",
        "bom.cdx.json": "has other content",
    }


def test_files_that_only_one_has_are_named(tmp_path: Path) -> None:
    found = compared(tmp_path, lambda k: (k.artifact / "vocab.json").write_text("{}"))
    assert found["vocab.json"] == "is in the rebuilt package alone"


def test_places_in_the_manifest_are_named(tmp_path: Path) -> None:
    found = compared(tmp_path, lambda k: k.metrics["metrics"].update(kld_mean=0.013))
    assert found["manifest.json"] == "differs in `fidelity.metrics.kld_mean`"
    assert {"README.md", "bom.cdx.json"} <= set(found)


def test_speed_is_compared_like_all_else(tmp_path: Path) -> None:
    found = compared(tmp_path, lambda k: k.speed["metrics"].update(load_s=9.0))
    assert set(found) == {"README.md", "manifest.json"}


def test_a_signature_and_a_missing_statement_do_not_count(tmp_path: Path) -> None:
    first = Kitchen(tmp_path / "one").cook()
    second = shutil.copytree(first, tmp_path / "other")
    (first / "model.sig").write_text("{}", "utf-8")
    (first / "provenance.json").unlink()
    assert comparison.differences(side(first), side(second)) == []


@pytest.mark.parametrize(
    ("kind", "builder", "differs"),
    [
        ("urn:phipipe:build:1", "https://ci.example/runner", 1),
        ("https://ci.example/1", "urn:phipipe:builder:local:slsa-build-level-1", 1),
        ("https://ci.example/1", "https://ci.example/runner", 0),
    ],
)
def test_a_statement_counts_where_phipipe_made_it(
    tmp_path: Path, kind: str, builder: str, differs: int
) -> None:
    first = Kitchen(tmp_path / "one").cook()
    second = shutil.copytree(first, tmp_path / "other")
    said = json.loads((first / "provenance.json").read_text("utf-8"))
    said["predicate"]["buildDefinition"] |= {"buildType": kind, "internalParameters": {"a": 1}}
    said["predicate"]["runDetails"]["builder"]["id"] = builder
    (first / "provenance.json").write_text(json.dumps(said), "utf-8")
    assert len(comparison.differences(side(first), side(second))) == differs


def test_other_versions_are_the_likely_reason_and_come_first(tmp_path: Path) -> None:
    made = package.read_manifest(Kitchen(tmp_path / "one").cook())
    newer = {**TOOLS, "torch": "2.14.0", "extra": "1"}
    told = comparison.reasons(made, phipipe="9.9", tools={"quantize": newer, "convert": TOOLS})
    assert told == [
        f"phipipe {made.phipipe} made the package, and this is 9.9",
        "toolchain `quantize` has other versions than then: extra missing → 1, "
        "torch 2.13.0 → 2.14.0",
    ]
    assert comparison.reasons(made, phipipe=made.phipipe, tools={"quantize": TOOLS}) == []
