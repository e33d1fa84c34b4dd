"""What stays of a run: everything, or what ships and what was found out about it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from testing import lean_steps
from testing.lean_steps import CALLS, MEANWHILE, WEIGHTS, checkpoint, plan
from testing.plans import plan as plan_of
from testing.plans import planned

from phipipe.cli.listeners import Silent
from phipipe.errors import StoreError
from phipipe.execution import disk, dispatch, keeping
from phipipe.execution.bench import Bench
from phipipe.execution.manner import Manner
from phipipe.execution.nodes import graph
from phipipe.execution.results import NEEDED, Outcome
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.store import exports, letting_go
from phipipe.store.store import Store

LINKS = letting_go.os.name != "nt"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    CALLS.clear()
    MEANWHILE.clear()
    yield
    MEANWHILE.clear()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model")


def settings(cache: Path, keep_all: bool) -> Settings:
    return Settings(cache=cache, toolchains=cache / "toolchains", keep_all=keep_all)


def run(
    cache: Path, *plans: Plan, out: Path | None = None, keep_all: bool = False
) -> list[Outcome]:
    CALLS.clear()
    manner = Manner(jobs=1, out=out)
    return dispatch.attempt(plans, Store(cache), settings(cache, keep_all), Silent(), manner)


def objects(cache: Path) -> set[str]:
    return {path.name for path in (cache / "objects").iterdir()}


def linked(*folders: Path) -> list[Path]:
    """Files with a second name."""
    found = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
    return [p for p in found if p.stat().st_nlink > 1 or p.is_symlink()]


def digests_of(done: Outcome) -> dict[str, str]:
    return {name: result.stored.digest for name, result in done.results.items()}


def test_a_proof_goes_as_soon_as_it_is_given_and_all_else_stays(
    tmp_path: Path, model: Path
) -> None:
    seen: list[set[str]] = []
    MEANWHILE["quantize"] = lambda: seen.append(objects(tmp_path / "cache"))
    (done,) = run(tmp_path / "cache", plan(model), keep_all=True)
    assert done.error is None
    names = digests_of(done)
    assert names["slice"] not in seen[0]
    # the package took the artifact's files over
    kept = {names["check"], names["evaluate"], names["package"]}
    assert objects(tmp_path / "cache") == (kept if LINKS else {*kept, names["quantize"]})
    assert linked(tmp_path / "cache") == []
    (again,) = run(tmp_path / "cache", plan(model), keep_all=True)
    assert again.all_cached


def test_artifacts_alone_are_kept_and_a_second_run_does_nothing(
    tmp_path: Path, model: Path
) -> None:
    out = tmp_path / "out"
    (done,) = run(tmp_path / "cache", plan(model), out=out)
    assert done.error is None
    names = digests_of(done)
    left = {names["check"], names["evaluate"]}
    assert objects(tmp_path / "cache") == (left if LINKS else {*left, names["package"]})
    assert (out / "lean" / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes() * 2
    assert linked(tmp_path / "cache", out) == []
    (out / "lean" / WEIGHTS).open("ab").close()  # its owner may write to it
    (again,) = run(tmp_path / "cache", plan(model), out=out)
    assert again.all_cached
    assert CALLS == []
    assert again.package == out / "lean"
    assert Store(tmp_path / "cache").verify() == []


def test_what_went_is_made_again_when_a_step_needs_it(tmp_path: Path, model: Path) -> None:
    (done,) = run(tmp_path / "cache", plan(model), out=tmp_path / "out")
    other = plan(model, tokens=2)
    store, own = Store(tmp_path / "cache"), settings(tmp_path / "cache", keep_all=False)
    forecast = Bench(store, own, lambda line: None).foresee(other)
    assert {item.step.name: item.why for item in forecast if not item.cached} == {
        "quantize": NEEDED,
        "evaluate": "changed: params.tokens 1 → 2",
        "package": "needs `evaluate`, which will run",
    }
    (again,) = run(tmp_path / "cache", other, out=tmp_path / "out")
    assert again.error is None
    assert CALLS == ["quantize", "evaluate", "package"]
    assert digests_of(again)["quantize"] == digests_of(done)["quantize"]


@pytest.mark.skipif(not LINKS, reason="nothing is taken over there")
def test_an_artifact_comes_back_from_the_package_that_took_it_over(
    tmp_path: Path, model: Path
) -> None:
    run(tmp_path / "cache", plan(model), keep_all=True)
    (again,) = run(tmp_path / "cache", plan(model, tokens=2), keep_all=True)
    assert again.error is None
    assert CALLS == ["evaluate", "package"]  # it was not made again
    assert linked(tmp_path / "cache") == []
    assert Store(tmp_path / "cache").verify() == []


@pytest.mark.skipif(not LINKS, reason="nothing is taken over there")
def test_an_artifact_does_not_come_back_from_a_damaged_package(tmp_path: Path, model: Path) -> None:
    (done,) = run(tmp_path / "cache", plan(model), keep_all=True)
    spoilt = done.results["package"].stored.path / WEIGHTS
    spoilt.chmod(0o644)
    spoilt.write_bytes(b"?" * spoilt.stat().st_size)
    (again,) = run(tmp_path / "cache", plan(model, tokens=2), keep_all=True)
    assert again.error is None
    assert CALLS == ["quantize", "evaluate", "package"]
    packed = again.results["package"].stored.path / WEIGHTS
    assert packed.read_bytes() == (model / WEIGHTS).read_bytes() * 2


@pytest.mark.parametrize("keep_all", [True, False])
def test_builds_with_one_package_each_get_it(tmp_path: Path, model: Path, keep_all: bool) -> None:
    plans = [plan(model, name=name) for name in "abcd"]
    ends = run(tmp_path / "cache", *plans, out=tmp_path / "out", keep_all=keep_all)
    assert [done.error for done in ends] == [None] * 4
    assert CALLS.count("package") == 1
    raw = (model / WEIGHTS).read_bytes() * 2
    assert all((tmp_path / "out" / name / WEIGHTS).read_bytes() == raw for name in "abcd")
    kept = ends[0].results["package"].stored.digest in objects(tmp_path / "cache")
    assert kept is (keep_all or not LINKS)
    assert linked(tmp_path / "cache", tmp_path / "out") == []


def test_a_package_that_was_deleted_is_built_again(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    run(tmp_path / "cache", plan(model), out=out)
    before = (out / "lean" / WEIGHTS).read_bytes()
    shutil.rmtree(out / "lean")
    (done,) = run(tmp_path / "cache", plan(model), out=out)
    assert done.error is None
    assert (out / "lean" / WEIGHTS).read_bytes() == before


def test_what_another_build_has_pinned_stays_and_is_whole(tmp_path: Path, model: Path) -> None:
    out, held = tmp_path / "out", list[tuple[Store, Path]]()
    other = Store(tmp_path / "cache")
    steps = lean_steps.chain(model)
    with other.session():

        def hold() -> None:  # another process finds the proof's and the artifact's trees
            for record in list(other.records()):
                if record.get("step") in ("slice", "quantize"):
                    stored = other.lookup(str(record["key"]))
                    assert stored is not None
                    held.append((other, other.consume(stored)))

        middle = lean_steps.step("middle", "convert", "result", {"artifact": "quantize"})
        MEANWHILE["middle"] = hold
        plan_ = plan_of("lean", *steps[:4], middle, *steps[4:])
        (done,) = run(tmp_path / "cache", plan_, out=out)
        assert done.error is None
        assert held
        for _, path in held:
            assert (path / WEIGHTS).read_bytes()
        assert linked(tmp_path / "cache", out) == []
    assert Store(tmp_path / "cache").verify() == []


def test_what_another_build_of_the_run_still_reads_stays_until_then(
    tmp_path: Path, model: Path
) -> None:
    first, second = plan(model), plan(model, tokens=2, name="more")
    ends = run(tmp_path / "cache", first, second, out=tmp_path / "out")
    assert [done.error for done in ends] == [None, None]
    assert CALLS.count("quantize") == 1
    assert linked(tmp_path / "cache", tmp_path / "out") == []


def test_a_tree_that_somebody_may_want_to_see_stays(tmp_path: Path, model: Path) -> None:
    """Equal content is one tree: it goes only if all that it is to anybody may go."""
    steps = lean_steps.chain(model)
    shown = replace(steps[1], name="shown", keep="result", params={"name": "shown"})
    (done,) = run(tmp_path / "cache", plan_of("lean", *steps[:2], shown, *steps[2:]))
    assert done.error is None
    assert done.results["shown"].stored.digest == done.results["slice"].stored.digest
    assert done.results["shown"].stored.path.is_dir()


def test_reports_of_what_went_are_still_there(tmp_path: Path, model: Path) -> None:
    steps = lean_steps.changed(lean_steps.chain(model), "check", keep="material")
    (done,) = run(tmp_path / "cache", plan_of("lean", *steps))
    check = done.results["check"].stored
    assert check.digest not in objects(tmp_path / "cache")
    assert '"bytes"' in (check.path / "metrics.json").read_text()
    (again,) = run(tmp_path / "cache", plan_of("lean", *steps))
    assert (again.results["check"].stored.path / "metrics.json").is_file()


def test_damaged_reports_of_what_went_are_noticed(tmp_path: Path, model: Path) -> None:
    steps = lean_steps.changed(lean_steps.chain(model), "check", keep="material")
    (done,) = run(tmp_path / "cache", plan_of("lean", *steps))
    report = done.results["check"].stored.path / "metrics.json"
    report.chmod(0o644)
    report.write_text("{}")
    assert Store(tmp_path / "cache").verify() != []
    assert Store(tmp_path / "cache").verify() == []
    (again,) = run(tmp_path / "cache", plan_of("lean", *steps))
    assert again.error is None
    assert "check" in CALLS


def test_a_collection_takes_what_went_with_what_is_as_old(tmp_path: Path, model: Path) -> None:
    run(tmp_path / "cache", plan(model), out=tmp_path / "out")
    store = Store(tmp_path / "cache")
    foreseen = store.gc(10**12, dry_run=True)
    assert (foreseen.removed, foreseen.freed_bytes) == ((), 0)
    store.gc(10**12)
    (again,) = run(tmp_path / "cache", plan(model), out=tmp_path / "out")
    assert again.all_cached
    expected = store.gc(0, dry_run=True)
    assert store.gc(0) == expected
    assert list(store.records()) == []
    assert not list((tmp_path / "cache" / "left").glob("*"))


@pytest.mark.skipif(not LINKS, reason="nothing is given away there")
def test_a_package_that_cannot_be_delivered_stays_in_the_cache(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "_swap", full)
    (done,) = run(tmp_path / "cache", plan(model), out=tmp_path / "out")
    assert isinstance(done.error, StoreError)
    monkeypatch.undo()
    assert linked(tmp_path / "cache") == []
    (again,) = run(tmp_path / "cache", plan(model), out=tmp_path / "out")
    assert again.error is None
    assert CALLS == []  # it was there all the time
    assert (tmp_path / "out" / "lean" / WEIGHTS).is_file()


@pytest.mark.parametrize("setting", [True, False])
@pytest.mark.parametrize("said", [None, "all", "artifacts"])
def test_a_recipe_says_what_stays_before_the_setting_does(
    tmp_path: Path, model: Path, setting: bool, said: str | None
) -> None:
    (done,) = run(tmp_path / "cache", plan(model, keep=said), keep_all=setting)
    names, there = digests_of(done), objects(tmp_path / "cache")
    run(tmp_path / "other", plan(model), keep_all=setting if said is None else said == "all")
    assert there == objects(tmp_path / "other")
    assert {names["check"], names["evaluate"]} <= there
    (again,) = run(tmp_path / "cache", plan(model), keep_all=setting)
    assert again.all_cached  # nothing is made again because it changed


@pytest.mark.parametrize("said", [("all", "artifacts"), ("artifacts", "all")])
def test_what_two_builds_share_stays_if_one_of_them_keeps_all(
    tmp_path: Path, model: Path, said: tuple[str, str]
) -> None:
    # the second build's artifact is another one, twice as large
    other, large = lean_steps.chain(model, borrows=False), 114688
    needs = {"source": "slice"}
    other = lean_steps.changed(other, "quantize", needs=needs, output_bytes=large)
    other = lean_steps.changed(other, "package", output_bytes=large + 2, taken_bytes=large)
    first = plan(model, borrows=False, keep=said[0])
    plans, out = (first, plan_of("more", *other, keep=said[1])), tmp_path / "out"
    keep_all = [one == "all" for one in said]
    nodes, _ = graph(plans)
    expected = disk.foreseen(disk.uses_among(nodes, nodes, keep_all))
    ends = run(tmp_path / "cache", *plans, out=out)
    assert [done.error for done in ends] == [None, None]
    there = objects(tmp_path / "cache")
    assert digests_of(ends[0])["source"] in there
    assert [digests_of(done)["package"] in there for done in ends] == keep_all
    found = [p for p in (tmp_path / "cache" / "objects").rglob("*") if p.is_file()]
    kept = sum(p.stat().st_size for p in found)
    assert kept == pytest.approx(expected.kept, abs=300)  # reports of a few bytes


def test_all_stays_of_a_run_whose_recipe_is_overruled() -> None:
    made = planned("cache.keep=artifacts")
    own = Settings(cache=Path(), toolchains=Path(), keep_all=False)
    assert not keeping.keeps_all(made, own)
    assert keeping.keeps_all(keeping.keeping_all(made), own)


def test_what_stays_is_in_no_key() -> None:
    """Neither in what decides a step, nor in the recipe that a package has."""
    without, with_ = planned(), planned("cache.keep=artifacts")
    assert with_.build.recipe.cache.keep == "artifacts"
    assert list(graph([with_]).nodes) == list(graph([without]).nodes)


@pytest.mark.parametrize("keep_all", [True, False])
@pytest.mark.parametrize("borrows", [True, False])
def test_an_estimate_of_the_disk_is_what_a_run_takes(
    tmp_path: Path, model: Path, keep_all: bool, borrows: bool
) -> None:
    """Sizes are known here, so what is left to err is which of them count."""
    made = plan(model, borrows=borrows)
    expected = disk.foreseen(disk.uses_of(made.steps, keep_all))
    seen = [0]

    def look() -> None:
        folders = (tmp_path / "cache" / "objects", tmp_path / "cache" / "tmp", tmp_path / "out")
        found = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
        seen.append(sum(p.stat().st_size for p in found if not p.is_symlink()))

    MEANWHILE.update({"slice": look, "quantize": look})
    run(tmp_path / "cache", made, out=tmp_path / "out", keep_all=keep_all)
    look()
    kept, delivered = (
        sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        for folder in (tmp_path / "cache" / "objects", tmp_path / "out")
    )
    assert kept == pytest.approx(expected.kept, abs=100)  # reports of a few bytes
    assert delivered == pytest.approx(expected.delivered, abs=100)
    assert max(seen) <= expected.peak + 100
