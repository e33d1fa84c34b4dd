"""Batches: what is chosen, what is built once, what is accepted, what is left to read. Steps here
are cheap."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from testing import documents, light_builds
from testing.light_builds import CALLS, FIGURES, TROUBLE, USUAL, prepare
from testing.places import TESTS
from testing.recipes import write
from testing.shell import Run

from phipipe import backends
from phipipe.batch import accept, batch, report, selection
from phipipe.batch import folder as batch_folder
from phipipe.batch.selection import Wanted
from phipipe.board import file, gathering
from phipipe.errors import (
    PhipipeError,
    RecipeError,
    StepFailed,
    StepKilled,
)
from phipipe.execution import preflight
from phipipe.execution.nodes import graph
from phipipe.package import closed_world
from phipipe.planning import preparation
from phipipe.planning.plan import Plan
from phipipe.recipe.build import Build
from phipipe.steps import Step

PREPARE = preparation.prepare  # the real one


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    CALLS.clear()
    FIGURES.clear()
    TROUBLE.clear()
    if "toolchains" not in request.fixturenames:  # that test is the real thing
        light_builds.install(monkeypatch)


@pytest.fixture
def run(run: Run) -> Run:
    """Run `phipipe batch` in this process: (exit code, stdout, stderr)."""
    return partial(run, "batch")


def summary(folder: Path = Path("batch")) -> dict[str, Any]:
    made = json.loads((folder / "batch.json").read_text("utf-8"))
    assert isinstance(made, dict)
    return made


def states(folder: Path = Path("batch")) -> dict[str, str]:
    return {row["name"]: row["state"] for row in summary(folder)["builds"]}


def chosen(paths: list[Path], **wanted: Any) -> list[str]:
    return [item.name for item in selection.select(paths, Wanted(**wanted), backends.OptionsOf())]


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


# --- selection


def test_folders_give_their_recipes_sorted_and_each_file_counts_once(tmp_path: Path) -> None:
    for name in "cab":
        write(tmp_path, name)
    (tmp_path / "notes.txt").write_text("x")
    assert chosen([tmp_path]) == ["a", "b", "c"]
    assert chosen([tmp_path / "b.yaml", tmp_path]) == ["b", "a", "c"]


def test_builds_are_chosen_by_name_tag_device_and_backend(tmp_path: Path) -> None:
    write(tmp_path, "a", "tags: [nightly, big]\n")
    write(
        tmp_path, "b", "tags: [weekly]\nmatrix:\n  - {precision: int8}\n  - {backend: llamacpp}\n"
    )
    write(tmp_path, "c", "backend: openvino\n")
    assert chosen([tmp_path], tags=["nightly"]) == ["a"]
    assert chosen([tmp_path], tags=["nightly", "week*"]) == [
        "a",
        "b-onnxruntime-int8",
        "b-llamacpp-int4",
    ]
    assert chosen([tmp_path], names=["b"]) == ["b-onnxruntime-int8", "b-llamacpp-int4"]
    assert chosen([tmp_path], names=["*int8", "c"]) == ["b-onnxruntime-int8", "c"]
    assert chosen([tmp_path], backends=["llamacpp"], names=["b*"]) == ["b-llamacpp-int4"]
    assert chosen([tmp_path], devices=["cpu-*"], backends=["openvino"]) == ["c"]


def test_a_place_that_cannot_be_written_is_said_before_anything_is_built(
    run: Run, tmp_path: Path
) -> None:
    write(tmp_path / "r", "a")
    (tmp_path / "file").write_text("mine", "utf-8")
    for out, expected, words in (
        ("file", 2, "`file` is a file, and a folder is meant"),
        ("file/deeper", 9, "cannot write to `file/deeper`: "),
    ):
        code, said, err = run("r", "--out", out)
        assert (code, said) == (expected, "")
        assert words in err
        assert "choose another --out" in err
        assert "runs: " not in err
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_an_empty_selection_ends_with_2_and_says_what_was_looked_at(
    run: Run, tmp_path: Path
) -> None:
    write(tmp_path / "r", "a", "tags: [nightly]\n")
    code, out, err = run("r", "--tag", "weekly")
    assert (code, out) == (2, "")
    assert "1 build of 1 recipe in `r`" in err
    assert "tags there: nightly" in err
    (tmp_path / "empty").mkdir()
    code, _, err = run("empty")
    assert code == 2
    assert "no recipes in `empty`" in err
    assert not (tmp_path / "batch").exists()


def test_two_recipes_of_one_name_are_refused_before_anything_runs(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "r", "a")
    (tmp_path / "r" / "copy.yaml").write_text((tmp_path / "r" / "a.yaml").read_text())
    code, _, err = run("r")
    assert code == 2
    assert "r/a.yaml" in err.replace("\\", "/")
    assert "r/copy.yaml" in err.replace("\\", "/")
    assert not CALLS


def test_a_variant_may_not_take_another_recipes_name(tmp_path: Path) -> None:
    write(tmp_path, "a", "matrix: [{precision: int8}]\n")
    write(tmp_path, "a-onnxruntime-int8")
    with pytest.raises(RecipeError, match="two builds are called"):
        chosen([tmp_path])


def test_a_device_file_beside_recipes_is_no_broken_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "a")
    path.write_text(path.read_text().replace("cpu-x86_64", "./board.yaml"))
    (tmp_path / "board.yaml").write_text("title: a board\n")
    assert chosen([tmp_path]) == ["a"]
    assert chosen([tmp_path, tmp_path / "board.yaml"]) == ["a", "board"]  # who names it, means it


# --- what changed


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    for name, source in (
        ("a", "{builtin: tiny-phi3}"),
        ("b", "{path: ../model}"),
        ("c", "{builtin: tiny-phi3}"),
    ):
        write(
            folder / "recipes",
            name,
            source=source,
            evaluate="{text: {file: ../c.txt}}" if name == "c" else "",
        )
    (folder / "model" / "deep").mkdir(parents=True)
    (folder / "model" / "deep" / "config.json").write_text("{}")
    (folder / "c.txt").write_text("once")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder / "recipes"


def test_only_what_changed_is_built(repository: Path) -> None:
    def since() -> list[str]:
        return chosen([repository], changed_since="HEAD")

    with pytest.raises(RecipeError, match="nothing is chosen by --changed-since HEAD"):
        since()
    with (repository / "a.yaml").open("a") as stream:
        stream.write("# more\n")
    assert since() == ["a"]
    (repository.parent / "model" / "deep" / "config.json").write_text("[]")
    assert since() == ["a", "b"]
    (repository.parent / "c.txt").write_text("twice")
    assert since() == ["a", "b", "c"]
    git(repository, "commit", "-aqm", "second")
    assert chosen([repository], changed_since="HEAD~1") == ["a", "b", "c"]
    write(repository, "new é")  # a name that git would quote; not yet added
    (repository / "new é.yaml").write_text(
        (repository / "a.yaml").read_text().replace("name: a", "name: new")
    )
    assert since() == ["new"]


@pytest.mark.parametrize("ref", ["nowhere", "--all", ""])
def test_a_commit_that_is_not_there_is_said(run: Run, repository: Path, ref: str) -> None:
    code, _, err = run(repository, "--changed-since", ref)
    assert code == 2
    assert "no such commit" in err


def test_recipes_outside_of_a_repository_have_no_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    write(tmp_path, "a")
    with pytest.raises(RecipeError, match="git finds no repository"):
        chosen([tmp_path], changed_since="HEAD")


def test_without_git_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="cannot be run"):
        chosen([tmp_path], changed_since="HEAD")


# --- building


def test_what_recipes_share_is_done_once_and_a_second_batch_does_nothing(
    run: Run, tmp_path: Path
) -> None:
    for name in "abc":
        write(tmp_path / "r", name)
    code, out, _ = run("r", "--jobs", "2")
    assert code == 0
    assert CALLS.count("take tiny-phi3") == 1
    assert "3 builds: 3 built" in out
    before = sorted(CALLS)
    code, out, _ = run("r")
    assert (code, sorted(CALLS)) == (0, before)
    assert "3 builds: 3 cached" in out
    assert summary()["states"]["cached"] == 3
    first = summary()["builds"][0]
    assert first["before"] == first["metrics"] != {}
    assert first["seconds"] == 0


def test_one_broken_recipe_keeps_nobody_from_building(run: Run, tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / "r", f"b{i}")
    (tmp_path / "r" / "broken.yaml").write_text("name: [")
    TROUBLE.update({"b1": "refused", "b2": "failed", "b3": "gated"})
    code, out, err = run("r")
    assert code == 7  # of 2, 3, 5 and 7
    assert states() == {f"b{i}": "built" for i in (0, 4, 5, 6, 7, 8, 9)} | {
        "b1": "refused", "b2": "failed", "b3": "gated", "broken": "refused",
    }  # fmt: skip
    rows = {row["name"]: row for row in summary()["builds"]}
    documents.fits(["batch"], (Path("batch") / "batch.json").read_text("utf-8"))
    assert [rows[name]["error"]["code"] for name in ("broken", "b1", "b2", "b3")] == [2, 3, 5, 7]
    assert [rows[name]["error"]["exit_code"] for name in ("broken", "b1", "b2", "b3")] == [
        2,
        3,
        5,
        7,
    ]
    assert rows["b3"]["metrics"] == pytest.approx(USUAL)  # how bad it is, is worth knowing
    assert rows["b3"]["package"] is None
    assert "never closed" in err
    assert "11 builds: 7 built, 1 gated, 1 failed, 2 refused" in out
    assert not (Path("batch") / "b3").exists()


def test_fail_fast_starts_nothing_more(run: Run, tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / "r", name)
    TROUBLE["a"] = "failed"
    code, _, _ = run("r", "--fail-fast", "--jobs", "1")
    assert code == 5
    found = states()
    assert found.pop("a") == "failed"
    assert set(found.values()) == {"skipped"}
    assert not [call for call in CALLS if call.startswith("package")]
    TROUBLE.clear()
    assert run("r", "--fail-fast")[0] == 0


def test_fail_fast_does_not_begin_where_a_recipe_is_broken(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "r", "a")
    (tmp_path / "r" / "broken.yaml").write_text("name: [")
    assert run("r", "--fail-fast")[0] == 2
    assert states() == {"a": "skipped", "broken": "refused"}
    assert not CALLS


def test_a_build_too_large_for_this_machine_is_refused_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(build: Build, read: object = None, *, elsewhere: bool = False) -> Plan:
        made = prepare(build)
        steps = tuple(
            replace_memory(step, 10**15 if build.name == "a" else 0) for step in made.steps
        )
        return Plan(build=build, device=made.device, api="cpu", on_target="true", steps=steps)

    def replace_memory(step: Step, memory: int) -> Step:
        import dataclasses

        return dataclasses.replace(step, memory_bytes=memory)

    monkeypatch.setattr(preparation, "prepare", large)
    monkeypatch.setattr(preflight, "_others", lambda plan: [])
    write(tmp_path / "r", "a")
    write(tmp_path / "r", "b")
    code, _, err = run("r")
    assert code == StepKilled.exit_code
    assert states() == {"a": "refused", "b": "built"}
    assert "of memory" in err


def test_a_package_of_run_is_not_built_into(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "r", "a")
    (tmp_path / "batch" / "a").mkdir(parents=True)
    (tmp_path / "batch" / "a" / "manifest.json").write_text("{}")
    code, _, err = run("r")
    assert code == 9
    assert "is a package" in err
    assert not CALLS


@pytest.mark.parametrize("name", sorted(batch.RESERVED))
def test_no_build_takes_the_place_of_a_report(run: Run, tmp_path: Path, name: str) -> None:
    write(tmp_path / "r", name)
    assert run("r")[0] == 2


# --- what is accepted


def versions(name: str = "a") -> list[str]:
    return [path.name for path in batch_folder.versions(Path("batch") / name)]


def pointed(name: str = "a") -> str | None:
    return batch_folder.latest(Path("batch") / name)


def test_packages_lie_under_their_version_and_latest_names_one(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "r", "a")
    run("r")
    (version,) = versions()
    assert (Path("batch") / "a" / "latest").read_text() == f"{version}\n"
    row = summary()["builds"][0]
    assert row["digest"].startswith(version)
    assert row["package"] == f"a/{version}"
    assert row["accepted"] == version
    assert not closed_world.verify(Path("batch") / row["package"])
    stamp = (Path("batch") / row["package"] / "model.onnx.data").stat().st_ino
    run("r")
    assert (
        Path("batch") / row["package"] / "model.onnx.data"
    ).stat().st_ino == stamp  # not written again


def test_old_packages_go_but_never_the_accepted_one(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "r", "a", evaluate="{tolerance: {kld_mean: 0.001}}")
    run("r", "--keep", "2")
    first = pointed()
    for i in range(4):
        FIGURES["a"] = {"kld_mean": 0.1 + i}
        assert run("r", "--keep", "2")[0] == 7
        assert len(versions()) == 2
        assert first in versions()
    assert pointed() == first
    FIGURES["a"] = {"kld_mean": 0.01}
    assert run("r", "--keep", "1")[0] == 0
    assert versions() == [pointed()]
    assert pointed() != first
    keep = Path("batch") / "a" / "my-notes"
    keep.mkdir()
    FIGURES["a"] = {"kld_mean": 0.005}
    run("r", "--keep", "1")
    assert keep.is_dir()
    assert not list((Path("batch") / "a").glob(".*"))


def test_worse_than_tolerated_is_exit_code_7_until_it_is_tolerated(
    run: Run, tmp_path: Path
) -> None:
    write(tmp_path / "r", "a", evaluate="{tolerance: {kld_mean: 0.01, top1: 0.01, size_gib: 0.5}}")
    write(tmp_path / "r", "b")
    run("r")
    first = pointed()
    FIGURES["a"] = {"kld_mean": 0.05, "top1": 0.945, "size_gib": 3.0}
    for _ in range(2):  # what was refused yesterday is refused again today
        code, out, err = run("r")
        assert code == 7
        assert "`kld_mean` was 0.02 and went to 0.05; 0.01 worse is tolerated" in err
        assert "+150.0 %" in out
        row = summary()["builds"][0]
        assert row["state"] == "gated"
        assert row["regressions"] == [
            {"metric": "kld_mean", "before": 0.02, "after": 0.05, "limit": 0.01},
            {"metric": "size_gib", "before": 2.0, "after": 3.0, "limit": 0.5},
        ]
        assert pointed() == row["accepted"] == first
        assert states()["b"] == "cached"
    write(tmp_path / "r", "a", evaluate="{tolerance: {kld_mean: 0.04, size_gib: 1}}")
    assert run("r")[0] == 0
    assert pointed() != first


def test_tolerances_and_tags_change_no_key(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", "a", evaluate="{tokens: 1024}")
    marked = write(
        tmp_path / "marked", "a", "tags: [x]\n", evaluate="{tokens: 1024, tolerance: {top1: 0.1}}"
    )
    other = write(tmp_path / "other", "a", evaluate="{tokens: 2048}")
    items = selection.select([plain], Wanted(), backends.OptionsOf())
    items += selection.select([marked], Wanted(), backends.OptionsOf())
    items += selection.select([other], Wanted(), backends.OptionsOf())
    _, names = graph([PREPARE(item.build) for item in items if item.build])
    assert names[0] == names[1] != names[2]


def test_better_is_no_regression_and_a_metric_that_is_gone_is_one() -> None:
    before = {"kld_mean": 0.02, "top1": 0.9, "decode_tokens_per_s": 100.0}
    limits = {"kld_mean": 0.0, "top1": 0.05, "decode_tokens_per_s": 10.0, "ppl": 1.0}
    assert not accept.regressions(
        before, {"kld_mean": 0.01, "top1": 0.86, "decode_tokens_per_s": 900.0}, limits
    )
    assert not accept.regressions(before, before, limits)
    found = accept.regressions(before, {"kld_mean": 0.020001, "top1": 0.84}, limits)
    assert [(one.metric, one.after) for one in found] == [
        ("decode_tokens_per_s", None), ("kld_mean", 0.020001), ("top1", 0.84),
    ]  # fmt: skip


def test_figures_taken_otherwise_are_not_compared(run: Run, tmp_path: Path) -> None:
    tolerance = "tolerance: {kld_mean: 0, size_gib: 0, decode_tokens_per_s: 0}"
    write(tmp_path / "r", "a", evaluate=f"{{{tolerance}}}")
    FIGURES["a"] = {"decode_tokens_per_s": 100.0}
    run("r")
    FIGURES["a"] = {
        "decode_tokens_per_s": 10.0,
        "cores": 8,
        "kld_mean": 0.5,
    }  # another machine, ...
    write(
        tmp_path / "r", "a", evaluate=f"{{tokens: 8192, {tolerance}}}"
    )  # ... and more of the text
    assert run("r")[0] == 0
    assert summary()["builds"][0]["compared"] == ["bits_per_weight", "size_gib"]
    FIGURES["a"] = {"decode_tokens_per_s": 9.0, "cores": 8, "kld_mean": 0.5}
    assert run("r")[0] == 7


@pytest.mark.parametrize("text", ["", "../../etc", "0123456789abcdef", "x" * 10_000])
def test_a_pointer_that_names_nothing_is_written_anew(run: Run, tmp_path: Path, text: str) -> None:
    write(tmp_path / "r", "a", evaluate="{tolerance: {kld_mean: 0}}")
    run("r")
    (Path("batch") / "a" / "latest").write_text(text)
    assert run("r")[0] == 0
    assert [pointed()] == versions()


def test_a_pointer_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "a"
    home.mkdir()
    batch_folder.point(home, "0" * 16)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phipipe.store.files._flush", full)
    with pytest.raises(OSError, match="No space"):
        batch_folder.point(home, "1" * 16)
    assert batch_folder.latest(home) == "0" * 16
    assert [path.name for path in home.iterdir()] == ["latest"]


# --- what is left to read


def test_junit_tells_ci_what_failed(run: Run, tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / "r", name)
    TROUBLE.update({"b": "failed", "c": "gated", "d": "refused"})
    run("r")
    root = ElementTree.parse(Path("batch") / "junit.xml").getroot()
    suite = root[0]
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == [
        "4",
        "1",
        "2",
        "0",
    ]
    cases = {case.get("name"): case for case in suite}
    assert not list(cases["a"])
    (error,) = cases["b"]
    assert (error.tag, error.get("type")) == ("error", "StepFailed")
    assert "no�[0m <&>" in str(error.text)
    assert "try: try less" in str(error.text)
    assert [child.tag for child in cases["c"]] == ["failure"]
    assert str(cases["d"].get("classname")).endswith("d.yaml")


def test_the_summary_is_also_printed(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "r", "a")
    _, out, _ = run("r", "--json", "--out", "elsewhere/deep")
    made = documents.fits(["batch"], out)
    assert made == summary(Path("elsewhere/deep"))
    assert (made["type"], made["format"], made["exit_code"]) == ("phipipe-batch", 1, 0)
    assert made["started"] <= made["finished"]


def test_one_model_is_one_board(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "r", "a")
    write(tmp_path / "r", "b")
    TROUBLE["b"] = "failed"
    run("r")
    entries = file.load((Path("batch") / "board.json").read_text("utf-8"))
    assert [(e.name, e.error is None) for e in entries] == [("a", True), ("b", False)]
    assert 'id="board"' in (Path("batch") / "board.html").read_text("utf-8")


def test_builds_of_several_models_have_a_board_each(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "r", "a")
    write(tmp_path / "r", "b", source="{path: <script>}")
    assert run("r")[0] == 0
    pages = sorted(path.name for path in (Path("batch") / "boards").iterdir())
    assert pages == ["script.html", "script.json", "tiny-phi3.html", "tiny-phi3.json"]
    page = (Path("batch") / "board.html").read_text("utf-8")
    assert 'href="boards/script.html"' in page
    assert "<script>" not in page
    run("r", "--name", "a")  # what was not asked for stays on the board
    assert {e.name for e in file.load((Path("batch") / "board.json").read_text("utf-8"))} == {
        "a",
        "b",
    }
    assert sorted(path.name for path in (Path("batch") / "boards").iterdir()) == pages
    (page,) = gathering.of_paths([Path("batch/boards/script.json")], print)
    assert page.name == "b"
    written = (Path("batch") / "boards" / "script.html").stat().st_ino
    FIGURES["a"] = {"kld_mean": 0.01}
    run("r")
    assert (Path("batch") / "boards" / "script.html").stat().st_ino == written  # nothing new in it
    (Path("batch") / "b" / "latest").unlink()
    run("r", "--name", "a")
    assert not list((Path("batch") / "boards").iterdir())


def test_worst_is_the_highest_code() -> None:
    def ended(error: PhipipeError | None) -> accept.Done:
        item = selection.Item(name="a", path=Path("a.yaml"))
        return accept.Done(item=item, error=error, metrics={}, before={})

    assert report.exit_code([ended(None)]) == 0
    assert report.exit_code([ended(StepFailed("x")), ended(RecipeError("y")), ended(None)]) == 5


def test_a_second_batch_goes_on_after_an_interruption(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        write(tmp_path / "r", name)

    def stop(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(light_builds, "package", stop)
        assert run("r")[0] == 130
    assert not (Path("batch") / "batch.json").exists()
    evaluated = CALLS.count("evaluate a")
    assert run("r")[0] == 0
    assert CALLS.count("evaluate a") == evaluated == 1
    assert summary()["states"]["built"] == 2


KILLED = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import pytest
from testing import light_builds
from phipipe import cli
light_builds.install(pytest.MonkeyPatch())
light_builds.package = lambda inputs, out, params: os._exit(9)
cli.main()
"""


def test_a_batch_that_was_killed_ends_as_one_that_was_not(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        write(tmp_path / "r", name)
    words = [sys.executable, "-c", KILLED, str(TESTS), "batch", "r", "--jobs", "1"]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, check=False).returncode == 9
    assert run("r")[0] == 0
    assert "evaluate a" not in CALLS  # by the process that is gone
    once = {row["name"]: row["digest"] for row in summary()["builds"]}
    monkeypatch.setenv("PHIPIPE_CACHE", str(tmp_path / "other"))
    run("r", "--out", "other-batch")
    assert {row["name"]: row["digest"] for row in summary(Path("other-batch"))["builds"]} == once


def test_what_killed_batches_left_goes(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "r", "a")
    half = tmp_path / "batch" / "a" / f".0123456789abcdef.{'0' * 32}"
    half.mkdir(parents=True)
    (half / "model.onnx.data").write_text("half of it")
    mine = half.with_name(".mine")
    mine.mkdir()
    assert run("r")[0] == 0
    assert not half.exists()
    assert mine.is_dir()


# --- the embedded model, two runtimes


def test_the_embedded_model_in_two_runtimes(run: Run, tmp_path: Path, toolchains: Path) -> None:
    shared = "{tokens: 512, window: 256, tolerance: {kld_mean: 0.001, size_gib: 0.0001}}"
    measured = "measure: {prompt_tokens: 16, new_tokens: 8, repetitions: 1}\n"
    write(tmp_path / "r", "ort", measured, evaluate=shared)
    write(tmp_path / "r", "cpp", f"backend: llamacpp\n{measured}", evaluate=shared)
    code, _, err = run("r")
    assert code == 0, err
    for word in ("runs: ", "done "):  # once for both
        assert len(re.findall(rf"^  baseline +{word}", err, re.M)) == 1
    assert states() == {"ort": "built", "cpp": "built"}
    for row in summary()["builds"]:
        assert not closed_world.verify(Path("batch") / row["package"])
        assert row["metrics"]["kld_mean"] > 0
    assert {e.backend for e in file.load(Path("batch/board.json").read_text("utf-8"))} == {
        "onnxruntime",
        "llamacpp",
    }
    code, out, _ = run("r")
    assert code == 0
    assert "2 builds: 2 cached" in out
    path = write(tmp_path / "r", "cpp", f"backend: llamacpp\n{measured}", evaluate=shared)
    path.write_text(path.read_text().replace("int4", "int8"))
    code, _, err = run("r", "--name", "cpp")
    assert code == 7
    assert "`size_gib` was" in err
