"""`phipipe rebuild`: what it says, in words and as JSON, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing import documents
from testing.kitchen import Kitchen
from testing.shell import Run

from phipipe.api import rebuilding
from phipipe.api.rebuilding import Rebuilt
from phipipe.package.manifest import Finding


@pytest.fixture
def cooked(tmp_path: Path) -> Path:
    return Kitchen(tmp_path / "kitchen").cook("cooked")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Have rebuilds end so, whatever they are asked for; what that was."""

    def end(**changed: Any) -> list[Any]:
        asked: list[Any] = []
        usual: dict[str, Any] = {
            "equal": True,
            "differences": (),
            "reasons": (),
            "taken_over": ("measure",),
            "package": None,
        }

        def made(*given: Any) -> Rebuilt:
            asked.extend(given)
            return Rebuilt(**(usual | changed))

        monkeypatch.setattr(rebuilding, "made_again", made)
        return asked

    return end


OTHER = {
    "equal": False,
    "differences": (Finding("model.onnx", "has other content"), Finding("x", "is missing")),
    "reasons": ("phipipe 0.1 made the package, and this is 0.2",),
}


def test_the_same_package_ends_well(run: Run, cooked: Path, ends: Callable[..., list[Any]]) -> None:
    asked = ends()
    code, out, _ = run("rebuild", str(cooked), "--check")
    assert code == 0
    assert out.splitlines() == [
        f"{cooked}: made again, the same bit for bit",
        "taken over from it, not measured again: measure",
    ]
    assert asked[2] is None  # nothing is kept


def test_another_package_ends_with_5_and_the_likely_reason_first(
    run: Run, cooked: Path, ends: Callable[..., list[Any]]
) -> None:
    ends(**OTHER)
    code, out, err = run("rebuild", str(cooked), "--check")
    assert code == 5
    assert out.splitlines()[:3] == [
        "likely reason: phipipe 0.1 made the package, and this is 0.2",
        "model.onnx: has other content",
        "x: is missing",
    ]
    assert "the rebuilt package is another one: 2 files differ" in err


def test_without_check_a_difference_is_told_and_no_failure(
    run: Run, cooked: Path, ends: Callable[..., list[Any]], tmp_path: Path
) -> None:
    asked = ends(**OTHER)
    code, out, _ = run("rebuild", str(cooked), "--out", str(tmp_path / "new"))
    assert code == 0
    assert "made again, and 2 files differ" in out
    assert asked[2] == tmp_path / "new"


def test_as_json(run: Run, cooked: Path, ends: Callable[..., list[Any]]) -> None:
    ends(**OTHER)
    code, out, _ = run("rebuild", str(cooked), "--check", "--json")
    assert code == 5
    documents.fits(("rebuild", "--json"), out)
    found = json.loads(out.splitlines()[0]) if out.startswith('{"') else json.loads(out)
    assert found["equal"] is False
    assert found["differences"][0] == {"path": "model.onnx", "message": "has other content"}


def test_the_makers_files_reach_the_build(
    run: Run, cooked: Path, ends: Callable[..., list[Any]], tmp_path: Path
) -> None:
    asked = ends()
    text = tmp_path / "a.txt"
    text.write_text("some", "utf-8")
    words = ["--source", str(tmp_path), "--text", str(text), "--text", str(text)]
    assert run("rebuild", str(cooked), "--check", *words)[0] == 0
    given = asked[1]
    assert (given.source, list(given.texts), given.adapter) == (tmp_path, [text, text], None)


def test_check_and_out_exclude_each_other(run: Run, cooked: Path) -> None:
    code, _, err = run("rebuild", str(cooked), "--check", "--out", "x")
    assert code == 2
    assert "--check keeps no package" in err


def test_a_changed_package_is_not_rebuilt(run: Run, cooked: Path) -> None:
    (cooked / "model.onnx").write_bytes(b"other")
    code, _, err = run("rebuild", str(cooked), "--check")
    assert code == 8
    assert "is not as it was packaged" in err


@pytest.mark.parametrize("where", ["a file", "a package", "something else"])
def test_a_folder_that_cannot_be_had_is_refused_before_the_work(
    run: Run, cooked: Path, tmp_path: Path, where: str
) -> None:
    out = tmp_path / "out"
    if where == "a file":
        out.write_text("some", "utf-8")
    elif where == "a package":
        out = cooked / "inside"
    else:
        (out / "quickstart").mkdir(parents=True)
        (out / "quickstart" / "thesis.txt").write_text("mine", "utf-8")
    code, _, err = run("rebuild", str(cooked), "--out", str(out))
    assert code in (2, 9)
    assert "bug" not in err
    assert cooked.is_dir()
    assert not (cooked / "inside").exists()
