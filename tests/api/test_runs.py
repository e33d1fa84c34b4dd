"""Runs from Python. Steps here are cheap."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from testing import documents, light_builds, recipes
from testing.boards import entry
from testing.light_builds import CALLS, FIGURES, TROUBLE
from testing.shell import Run

import phipipe
from phipipe import Event, Recipe, RecipeError, StepFailed, StoreError, TargetError
from phipipe.board import gathering

THREE = "matrix:\n- {name: a}\n- {name: b}\n- {name: c}\n"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    light_builds.CALLS.clear()
    FIGURES.clear()
    TROUBLE.clear()
    light_builds.install(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return recipes.write(tmp_path, "one")


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return recipes.write(tmp_path, "three", THREE)


def test_a_run_gives_package_figures_and_steps(one: Path, tmp_path: Path) -> None:
    results = phipipe.run(one)
    assert (len(results), results.error, results.errors) == (1, None, {})
    assert results.package is not None
    assert results.package.path == Path("packages/one")
    assert results.figures["kld_mean"] == light_builds.USUAL["kld_mean"]
    assert [step.name for step in results.steps][-1] == "package"
    assert results[0] is results["one"] is results.single
    assert (results[0].state, repr(results)) == ("built", "<Results one: built>")
    assert results.check() is results
    assert results.board_page is None


def test_a_second_run_does_nothing(one: Path) -> None:
    phipipe.run(one)
    done = list(light_builds.CALLS)
    again = phipipe.run(one)
    assert done == light_builds.CALLS
    assert again.single.cached
    assert all(step.cached for step in again.steps)


def test_the_result_is_what_the_command_prints(one: Path, run: Run) -> None:
    ours = phipipe.run(one).to_dict()
    code, out, _ = run("run", str(one), "--json")
    theirs = json.loads(out)
    assert code == 0
    documents.fits(["run"], out)
    documents.fits(["run"], json.dumps(ours))
    for built in (*ours, *theirs):
        built["seconds"] = 0
        built["steps"] = [step["key"] for step in built["steps"]]
    assert ours == theirs


def test_words_of_a_result_are_those_of_the_command(one: Path, run: Run) -> None:
    phipipe.run(one)
    words = str(phipipe.run(one)).splitlines()
    printed = run("run", str(one))[1].splitlines()
    same = [line for line in words if "cached" not in line]
    assert same == [line for line in printed if "cached" not in line]
    assert words[0].startswith("one: tiny-phi3 → int4")


def test_the_only_build_raises_its_own_error(one: Path) -> None:
    TROUBLE["one"] = "failed"
    with pytest.raises(StepFailed, match="said") as caught:
        phipipe.run(one)
    assert caught.value.hint == "try less"


def test_of_several_one_that_fails_leaves_the_others(three: Path) -> None:
    TROUBLE["three-b"] = "failed"
    results = phipipe.run(three)
    assert {name: result.state for name, result in zip(results.names, results, strict=True)} == {
        "three-a": "built",
        "three-b": "failed",
        "three-c": "built",
    }
    assert list(results.errors) == ["three-b"]
    assert [package.name for package in results.packages] == ["three-a", "three-c"]
    assert results["three-b"].package is None
    for check in (results.check, results["three-b"].check):
        with pytest.raises(StepFailed):
            check()
    assert results["three-a"].check() is results["three-a"]


def test_the_worst_of_several_failures_is_raised(three: Path) -> None:
    TROUBLE.update({"three-a": "failed", "three-b": "gated"})
    results = phipipe.run(three)
    assert isinstance(results.error, phipipe.GateFailed)


def test_several_builds_leave_a_board(three: Path) -> None:
    FIGURES["three-b"] = {"kld_mean": 0.5, "size_gib": 1.0}
    results = phipipe.run(three)
    assert results.board_page == Path("packages/three/board.html")
    assert results.board_page.is_file()
    assert results.board.to_dict() == json.loads(
        Path("packages/three/board.json").read_text("utf-8")
    )


def test_a_board_goes_beside_packages_and_never_into_one(tmp_path: Path) -> None:
    single = phipipe.run(recipes.write(tmp_path, "same"))
    assert single.package.path == Path("packages/same")
    before = sorted(path.name for path in Path("packages/same").iterdir())
    more = "matrix:\n- {name: board}\n- {name: b}\n"  # one build has the board's usual name
    results = phipipe.run(recipes.write(tmp_path, "same", more))
    assert results.board_page == Path("packages/same-board-board/board.html")
    assert [package.path.name for package in results.packages] == ["same-board", "same-b"]
    assert sorted(path.name for path in Path("packages/same").iterdir()) == before
    again = phipipe.run(recipes.write(tmp_path, "same"))
    assert again.package.path == Path("packages/same")


def test_a_folder_that_holds_a_board_is_told_before_the_first_step(tmp_path: Path) -> None:
    more = "matrix:\n- {name: a}\n- {name: b}\n"
    phipipe.run(recipes.write(tmp_path, "two", more))
    CALLS.clear()
    with pytest.raises(phipipe.StoreError, match="holds a board and no package") as refused:
        phipipe.run(recipes.write(tmp_path, "two"))
    assert "move it away" in str(refused.value.hint)
    assert not CALLS


def test_nothing_is_written_into_a_package(tmp_path: Path) -> None:
    file = recipes.write(tmp_path, "one")
    package, words = phipipe.run(file).package.path, "a package, into which nothing else"
    for inner in (package, package / "deeper"):
        with pytest.raises(StoreError, match=words):
            phipipe.run(file, out=inner)
        with pytest.raises(StoreError, match=words):
            phipipe.run_batch(file, out=inner)
        with pytest.raises(StoreError, match=words):
            gathering.write([entry("a", 1, 0.1)], inner, "title")


def test_builds_on_different_texts_have_no_board_and_a_note(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("words " * 2000, "utf-8")
    more = "matrix:\n- {name: a}\n- {name: b, evaluate: {text: {file: other.txt}}}\n"
    heard: list[Event] = []
    results = phipipe.run(recipes.write(tmp_path, "two", more), heard.append)
    assert results.board_page is None
    assert [e.text for e in heard if e.kind == "note"][-1].startswith("no board: ")
    with pytest.raises(phipipe.SourceError, match="evaluation text differs"):
        _ = results.board


def test_one_of_several_is_asked_for_by_name(three: Path) -> None:
    results = phipipe.run(three)
    with pytest.raises(
        AttributeError, match=r"3 builds: take one of them, such as results\['three-a'\]"
    ):
        _ = results.package
    with pytest.raises(KeyError, match="there are three-a, three-b, three-c"):
        _ = results["four"]
    assert results[-1].name == "three-c"


def test_variants_and_values_can_be_chosen(three: Path) -> None:
    assert phipipe.run(three, only="a").names == ["three-a"]
    assert phipipe.run(Recipe.load(three), only=["b", "c"]).names == ["three-b", "three-c"]
    assert phipipe.run(Recipe.load(three, only="c")).names == ["three-c"]
    result = phipipe.run(three, only="a", sets={"precision": "int8"}).single
    assert result.outcome.plan.build.recipe.precision == "int8"


def test_values_for_a_recipe_that_was_read_are_refused(one: Path) -> None:
    with pytest.raises(RecipeError, match="was read already") as caught:
        phipipe.run(Recipe.load(one), sets={"precision": "int8"})
    assert caught.value.hint == "phipipe.Recipe.load(path, sets=...)"


def test_a_recipe_that_cannot_be_built_is_refused_before_anything_runs(one: Path) -> None:
    TROUBLE["one"] = "refused"
    with pytest.raises(TargetError, match="cannot be"):
        phipipe.run(one)
    assert light_builds.CALLS == []


@pytest.mark.parametrize(
    ("out", "words"), [("", "empty"), ("one.yaml", "is a file"), ("a\0b", "NUL")]
)
def test_a_folder_that_cannot_be_written_is_refused_first(one: Path, out: str, words: str) -> None:
    with pytest.raises(RecipeError, match=f"the folder for packages.*{words}"):
        phipipe.run(one, out=out)
    assert light_builds.CALLS == []


def test_a_run_is_recorded_as_that_of_the_command_is(one: Path, own_cache: Path, run: Run) -> None:
    phipipe.run(one)
    code, out, _ = run("runs", "ls", "--json")
    (row,) = json.loads(out)
    assert (code, row["command"], row["builds"], row["exit_code"]) == (0, "run", ["one"], 0)


def test_everything_that_happens_is_told(one: Path) -> None:
    heard: list[Event] = []
    phipipe.run(one, on_progress=heard.append)
    steps = {event.step for event in heard if event.kind == "finished"}
    assert steps == {"source", "text", "evaluate", "measure", "gates", "package"}
    assert all(event.kind in ("started", "finished") for event in heard)
    first = next(event for event in heard if event.kind == "finished")
    assert (first.cached, first.error) == (False, None)
    assert first.seconds is not None
    heard.clear()
    phipipe.run(one, on_progress=heard.append)
    assert {event.cached for event in heard} == {True}


def test_a_failure_is_told_with_its_error(three: Path) -> None:
    TROUBLE["three-b"] = "failed"
    heard: list[Event] = []
    phipipe.run(three, heard.append)
    (failed,) = [event for event in heard if event.kind == "failed"]
    assert failed.step == "three-b: evaluate"
    assert isinstance(failed.error, StepFailed)
    assert str(failed).startswith("three-b: evaluate  failed: ")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_a_callback_that_raises_ends_the_run(one: Path, kind: type[BaseException]) -> None:
    def stop(event: Event) -> None:
        if event.kind == "finished" and event.step == "evaluate":
            raise kind("enough")

    with pytest.raises(kind, match="enough"):
        phipipe.run(one, stop)
    assert "package one" not in light_builds.CALLS
    assert not Path("packages/one").exists()
    assert phipipe.run(one).single.ok  # what was finished is kept


def test_a_run_works_in_a_thread(one: Path) -> None:
    results: list[phipipe.Results] = []
    thread = threading.Thread(target=lambda: results.append(phipipe.run(one)))
    thread.start()
    thread.join()
    assert results[0].single.ok


def test_the_api_prints_nothing(three: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TROUBLE["three-b"] = "failed"
    phipipe.run(three)
    phipipe.plan(three)
    assert capfd.readouterr() == ("", "")


def test_pages_for_notebooks_escape_strangers_text(three: Path) -> None:
    TROUBLE["three-b"] = "failed"  # its message holds markup, and commands a terminal
    results = phipipe.run(three)
    page = results._repr_html_()
    assert "&lt;&amp;&gt;" in page
    assert "<&>" not in page
    assert "\x1b" not in page + str(results)
    assert "try: try less" in page


def test_a_cache_that_cannot_be_used_is_a_store_error(
    one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PHIPIPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises((StoreError, RecipeError)):
        phipipe.run(one)


@pytest.mark.parametrize("jobs", [0, -1])
def test_no_steps_side_by_side_is_refused(one: Path, jobs: int) -> None:
    with pytest.raises(RecipeError, match=f"jobs is {jobs}"):
        phipipe.run(one, jobs=jobs)


def test_a_path_may_begin_at_home(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(one.parent))
    monkeypatch.setenv("USERPROFILE", str(one.parent))
    assert phipipe.run("~/one.yaml").single.ok
    assert phipipe.plan("~/one.yaml").todo == 0


WRONG: list[object] = [1.5, float("nan"), True, b"x", object(), [1]]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("recipe", "the recipe is"),
        ("out", "the folder for packages is"),
        ("sets", "sets is"),
        ("only", "only is"),
        ("on", "on is"),
        ("jobs", "jobs is"),
        ("on_progress", "on_progress is"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_before_anything_is_done(
    one: Path, name: str, said: str, wrong: object
) -> None:
    given: dict[str, object] = {"recipe": one, name: wrong}
    with pytest.raises(TypeError, match=f"^{said} .*: give "):
        phipipe.run(**given)  # type: ignore[arg-type]
    assert not light_builds.CALLS


def test_a_value_that_no_recipe_can_hold_is_refused(one: Path) -> None:
    for value in (Path("x"), {1, 2}, b"x", object()):
        with pytest.raises(RecipeError, match=r"the value of `evaluate\.tokens`") as caught:
            phipipe.run(one, sets={"evaluate.tokens": value})
        assert caught.value.hint
