"""A checkpoint that is read where it lies: never copied, and never mistaken for what it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testing import lean_steps
from testing.lean_steps import CALLS, MEANWHILE, WEIGHTS, checkpoint, plan
from testing.plans import plan as plan_of

from phipipe.cli.listeners import Silent
from phipipe.errors import PhipipeError, SourceError
from phipipe.execution import dispatch
from phipipe.execution.manner import Manner
from phipipe.execution.results import Outcome
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.store import digests, keys, lent
from phipipe.store.store import Store

pytestmark = pytest.mark.skipif(not lent.ABLE, reason="links are a privilege there")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    CALLS.clear()
    MEANWHILE.clear()
    yield
    MEANWHILE.clear()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "mine" / "model")


def run(cache: Path, made: Plan, out: Path | None = None, *, keep_all: bool = True) -> Outcome:
    """A run by a process of its own, as far as the store can tell."""
    CALLS.clear()
    digests._HASHED.clear()
    own = Settings(cache=cache, toolchains=cache / "toolchains", keep_all=keep_all)
    (done,) = dispatch.attempt([made], Store(cache), own, Silent(), Manner(jobs=1, out=out))
    return done


def fails(done: Outcome) -> PhipipeError:
    assert done.error is not None
    return done.error


def rewrite(path: Path, content: bytes, *, keep_times: bool = True) -> None:
    """Write other content of the same size, by an editor that keeps times or a program that does
    not."""
    status = path.stat()
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def copies_of(raw: bytes, cache: Path) -> list[Path]:
    return [p for p in cache.rglob("*") if p.is_file() and p.read_bytes() == raw]


def test_a_borrowed_checkpoint_is_not_copied_and_its_results_are_those_of_a_copy(
    tmp_path: Path, model: Path
) -> None:
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_nlink) for p in model.iterdir()}
    borrowed = run(tmp_path / "a", plan(model))
    copied = run(tmp_path / "b", plan(model, borrows=False))
    assert borrowed.error is copied.error is None
    assert {n: r.stored.digest for n, r in borrowed.results.items()} == {
        n: r.stored.digest for n, r in copied.results.items()
    }
    assert {n: r.key for n, r in borrowed.results.items()} == {
        n: r.key for n, r in copied.results.items()
    }
    raw = (model / WEIGHTS).read_bytes()
    assert not copies_of(raw, tmp_path / "a")
    assert len(copies_of(raw, tmp_path / "b")) == 1
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_nlink) for p in model.iterdir()} == before
    assert not [p for p in (tmp_path / "a" / "tmp").iterdir() if p.is_dir()]  # no view is left


def test_a_second_run_does_nothing_and_reads_nothing(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "cache", plan(model))
    monkeypatch.setattr(keys, "hash_file", lambda path: pytest.fail(f"{path} was read"))
    assert run(tmp_path / "cache", plan(model)).all_cached
    assert CALLS == []


def test_a_checkpoint_that_was_moved_is_found_by_its_content(tmp_path: Path, model: Path) -> None:
    run(tmp_path / "cache", plan(model))
    moved = model.rename(tmp_path / "elsewhere")
    done = run(tmp_path / "cache", plan(moved, tokens=2))
    assert done.error is None
    assert done.results["source"].cached
    assert sorted(CALLS) == ["evaluate", "package"]
    assert done.results["source"].stored.place == moved


@pytest.mark.parametrize("keep_times", [True, False])
def test_a_change_between_runs_is_a_new_key(tmp_path: Path, model: Path, keep_times: bool) -> None:
    first = run(tmp_path / "cache", plan(model))
    rewrite(model / WEIGHTS, b"WEIGHTS" * 4096, keep_times=keep_times)
    done = run(tmp_path / "cache", plan(model))
    if keep_times:  # nothing that a cached run looks at tells: it reads nothing, and serves the old
        assert done.all_cached
        again = run(tmp_path / "cache", plan(model, tokens=2))
        assert again.error is None  # nothing that was made needs the source again
        wiped = run(tmp_path / "other", plan(model))
        assert wiped.results["quantize"].stored.digest != first.results["quantize"].stored.digest
    else:
        assert done.results["source"].key != first.results["source"].key
        assert done.results["quantize"].stored.digest != first.results["quantize"].stored.digest


def digest_of_new(tmp_path: Path, model: Path) -> str:
    """What a cache that knows nothing makes of ``model``."""
    return run(tmp_path / "fresh", plan(model)).results["quantize"].stored.digest


def test_a_change_that_no_time_tells_is_noticed_before_a_step_reads(
    tmp_path: Path, model: Path
) -> None:
    run(tmp_path / "cache", plan(model))
    rewrite(model / WEIGHTS, b"WEIGHTS" * 4096)
    steps = lean_steps.changed(lean_steps.chain(model), "quantize", version=2)
    error = fails(run(tmp_path / "cache", plan_of("lean", *steps)))
    assert isinstance(error, SourceError)
    assert f"`{model / WEIGHTS}` changed" in error.message
    assert CALLS == []  # nothing was made of it
    again = run(tmp_path / "cache", plan(model))
    assert again.results["quantize"].stored.digest == digest_of_new(tmp_path, model)


@pytest.mark.parametrize("how", ["in place", "replaced", "with its times"])
def test_a_change_while_a_step_reads_makes_no_result(tmp_path: Path, model: Path, how: str) -> None:
    def change() -> None:
        if how == "replaced":
            (model / "new").write_bytes(b"WEIGHTS" * 4096)
            (model / "new").replace(model / WEIGHTS)
        else:
            rewrite(model / WEIGHTS, b"WEIGHTS" * 4096, keep_times=how == "with its times")

    MEANWHILE["quantize"] = change
    done = run(tmp_path / "cache", plan(model))
    error = fails(done)
    assert isinstance(error, SourceError)
    assert "changed while it was read" in error.message
    assert error.hint is not None
    assert "PHIPIPE_SOURCES=copy" in error.hint
    assert "quantize" not in done.results
    MEANWHILE.clear()
    again = run(tmp_path / "cache", plan(model))
    assert again.error is None
    assert again.results["quantize"].stored.digest == digest_of_new(tmp_path, model)


def test_a_change_between_hashing_and_the_first_step_is_noticed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look: Callable[..., str] = digests.digest

    def late(*given: object) -> str:
        digest = look(*given)
        rewrite(model / WEIGHTS, b"WEIGHTS" * 4096, keep_times=False)
        return digest

    monkeypatch.setattr(digests, "digest", late)
    done = run(tmp_path / "cache", plan(model))
    assert "changed while it was read" in fails(done).message
    assert CALLS == []


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_checkpoint_that_is_gone_is_named_with_what_to_do(
    tmp_path: Path, model: Path, when: str
) -> None:
    if when == "before":
        made = plan(model)
        (model / WEIGHTS).unlink()
        error = fails(run(tmp_path / "cache", made))
        assert f"cannot read `{model / WEIGHTS}`" in error.message
    else:
        MEANWHILE["slice"] = (model / WEIGHTS).unlink
        error = fails(run(tmp_path / "cache", plan(model)))
        assert f"`{model / WEIGHTS}` is gone" in error.message
        assert error.hint is not None
        assert "put it back" in error.hint
    assert isinstance(error, SourceError)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("odd", ["pipe", "device", "folder"])
def test_what_came_in_a_file_s_place_is_refused_and_nobody_waits_for_it(
    tmp_path: Path, model: Path, odd: str, when: str
) -> None:
    def change() -> None:
        (model / WEIGHTS).unlink()
        if odd == "pipe":
            os.mkfifo(model / WEIGHTS)
        elif odd == "device":
            (model / WEIGHTS).symlink_to("/dev/zero")
        else:
            (model / WEIGHTS).mkdir()

    made = plan(model)
    if when == "before":
        change()
    else:
        MEANWHILE["slice"] = change
    error = fails(run(tmp_path / "cache", made))
    assert isinstance(error, SourceError)
    assert error.message == f"cannot read `{model / WEIGHTS}`: it is no plain file"


def test_a_step_that_fails_because_the_checkpoint_vanished_says_that(
    tmp_path: Path, model: Path
) -> None:
    def vanish() -> None:
        (model / WEIGHTS).unlink()
        raise SourceError("no such file")

    MEANWHILE["quantize"] = vanish
    assert "is gone" in fails(run(tmp_path / "cache", plan(model))).message


def test_a_touched_checkpoint_is_hashed_again_and_right(tmp_path: Path, model: Path) -> None:
    MEANWHILE["quantize"] = lambda: os.utime(model / WEIGHTS, (time.time() - 60,) * 2)
    assert run(tmp_path / "cache", plan(model)).error is None


def test_links_and_a_read_only_folder_are_read_as_files(tmp_path: Path, model: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in (WEIGHTS, "tokens.json"):
        (linked / name).symlink_to(model / name)
    linked.chmod(0o555)
    done = run(tmp_path / "a", plan(linked))
    assert done.error is None
    direct = run(tmp_path / "b", plan(model))
    assert done.results["quantize"].stored.digest == direct.results["quantize"].stored.digest


def mending(model: Path, *, borrows: bool = True) -> Plan:
    _, *rest = lean_steps.chain(model, borrows=borrows)
    mended = lean_steps.step(
        "source",
        "mend",
        "material",
        {"source": "unmended"},
        borrows=True,
        takes_over="source",
        params={"settings": {"ends": [1, 2]}},
    )
    return plan_of("lean", lean_steps.source(model, "unmended", borrows=borrows), mended, *rest)


def test_settings_are_mended_over_a_borrowed_checkpoint(tmp_path: Path, model: Path) -> None:
    done = run(tmp_path / "a", mending(model))
    copied = run(tmp_path / "b", mending(model, borrows=False))
    assert done.error is copied.error is None
    ends = [one.results["source"].stored.digest for one in (done, copied)]
    assert ends[0] == ends[1]
    raw = (model / WEIGHTS).read_bytes()
    assert not copies_of(raw, tmp_path / "a")
    assert len(copies_of(raw, tmp_path / "b")) == 1  # the mended one took the other's files over
    assert run(tmp_path / "a", mending(model)).all_cached
    assert Store(tmp_path / "a").verify() == []


def test_what_was_copied_before_stays_in_use(tmp_path: Path, model: Path) -> None:
    run(tmp_path / "cache", plan(model, borrows=False))
    done = run(tmp_path / "cache", plan(model))
    assert done.all_cached
    assert done.results["source"].stored.place is None


def test_what_was_borrowed_is_copied_where_that_is_asked(tmp_path: Path, model: Path) -> None:
    run(tmp_path / "cache", plan(model))
    done = run(tmp_path / "cache", plan(model, borrows=False))
    assert not done.results["source"].cached
    assert done.results["source"].stored.path.is_dir()
    assert all(r.cached for name, r in done.results.items() if name != "source")


def test_the_cache_tells_where_a_borrowed_checkpoint_is(tmp_path: Path, model: Path) -> None:
    done = run(tmp_path / "cache", plan(model))
    store = Store(tmp_path / "cache")
    assert store.lent(done.results["source"].stored.digest) == model
    assert store.lent(done.results["quantize"].stored.digest) is None
    (row,) = [row for row in store.usage() if row.state == "in place"]
    assert (row.runs, row.size_bytes) == ("hub/take", 0)
    assert store.verify() == []
