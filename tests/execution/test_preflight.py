"""What this machine surely cannot do is refused before the first byte, with what would fit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from testing.places import QUICKSTART
from testing.plans import planned

from phipipe import cli, hardware
from phipipe.errors import StepKilled, StoreError
from phipipe.execution import disk, keeping, preflight
from phipipe.planning.plan import Plan
from phipipe.recipe.caching import Caching
from phipipe.settings import Settings
from phipipe.store.store import Store

GIB = 2**30


def with_sizes(made: Plan, **sizes: dict[str, int]) -> Plan:
    """``made`` with some steps' estimates replaced; keys are as before."""
    return replace(
        made, steps=tuple(replace(step, **sizes.get(step.name, {})) for step in made.steps)
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path / "cache", toolchains=tmp_path / "toolchains")


def test_the_quickstart_fits_this_machine(store: Store, settings: Settings, tmp_path: Path) -> None:
    assert preflight.refusal([planned()], store, settings, tmp_path) is None


def test_a_step_that_takes_more_memory_than_there_is_is_named(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    made = with_sizes(planned(), quantize={"memory_bytes": 10**15})
    found = preflight.refusal([made], store, settings, tmp_path)
    assert isinstance(found, StepKilled)
    assert "step `quantize` takes about" in found.message
    assert f"there are {hardware.memory_bytes() / GIB:.1f} GiB" in found.message
    assert found.hint is not None
    assert (
        "`backend: llamacpp`" in found.hint
    )  # the embedded model is small for every other backend


def test_a_limit_on_memory_counts(store: Store, settings: Settings, tmp_path: Path) -> None:
    made = with_sizes(planned(), quantize={"memory_bytes": 3 * GIB})
    assert preflight.refusal([made], store, settings, tmp_path) is None
    found = preflight.refusal([made], store, replace(settings, memory_limit_gib=2.0), tmp_path)
    assert found is not None
    assert "there are 2.0 GiB" in found.message


def test_disk_is_summed_over_all_builds_and_shared_steps_count_once(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"source": {"output_bytes": 6 * GIB}, "quantize": {"output_bytes": 3 * GIB}}
    plans = [
        with_sizes(planned(f"name={name}", *more), **sizes)
        for name, more in (("a", ()), ("b", ("precision=int8",)))
    ]
    here = preflight.Machine(memory_bytes=10**15, cache_free_bytes=13 * GIB, out_free_bytes=None)
    monkeypatch.setattr(preflight, "machine", lambda *_: here)
    assert preflight.refusal(plans, store, settings, tmp_path) is None  # 6 + 3 + 3, and little else
    monkeypatch.setattr(preflight, "machine", lambda *_: replace(here, cache_free_bytes=11 * GIB))
    found = preflight.refusal(plans, store, settings, tmp_path)
    assert isinstance(found, StoreError)
    assert "needs about 12." in found.message
    assert "step `source` writes most, 6.0 GiB" in found.message


def test_packages_on_another_disk_need_their_room_there(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = with_sizes(planned(), package={"output_bytes": 3 * GIB})
    here = preflight.Machine(memory_bytes=10**15, cache_free_bytes=4 * GIB, out_free_bytes=2 * GIB)
    monkeypatch.setattr(preflight, "machine", lambda *_: here)
    found = preflight.refusal([made], store, settings, tmp_path / "elsewhere")
    assert found is not None
    assert "elsewhere" in found.message
    monkeypatch.setattr(preflight, "machine", lambda *_: replace(here, out_free_bytes=None))
    found = preflight.refusal([made], store, settings, tmp_path)
    assert found is not None
    assert "needs about 6." in found.message  # in the cache, and beside it


def test_what_lies_there_already_counts_as_written(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    for name, size in (("whole/config.json", 100), ("parts/model.safetensors.part", 900)):
        path = tmp_path / "partial" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\0" * size)
    made = with_sizes(
        planned(), source={"folder": tmp_path / "partial" / "whole", "output_bytes": 1200}
    )
    uses = disk.uses_of([step for step in made.steps if step.name == "source"], keep_all=True)
    here = preflight.Machine(memory_bytes=1, cache_free_bytes=300, out_free_bytes=None)
    run = preflight.Run(here, tmp_path, out=None)
    assert preflight._too_little_disk(uses, run) is None
    less = replace(run, here=replace(here, cache_free_bytes=100))
    assert preflight._too_little_disk(uses, less) is not None


def test_what_keeps_less_is_named_where_that_would_fit(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = with_sizes(
        planned(),
        convert={"output_bytes": 4 * GIB},
        quantize={"output_bytes": 3 * GIB},
        package={"output_bytes": 3 * GIB, "taken_bytes": 3 * GIB},
    )
    here = preflight.Machine(memory_bytes=10**15, cache_free_bytes=8 * GIB, out_free_bytes=None)
    monkeypatch.setattr(preflight, "machine", lambda *_: here)
    found = preflight.refusal([made], store, settings, tmp_path)  # 4 + 3, and 3 in the folder
    assert found is not None
    assert "needs about 10." in found.message
    assert found.hint is not None
    assert "`cache: {keep: artifacts}` in the recipe needs less" in found.hint
    lean = replace(settings, keep_all=False)
    assert preflight.refusal([made], store, lean, tmp_path) is None
    said = keeping_as(made, "artifacts")
    assert preflight.refusal([said], store, settings, tmp_path) is None
    assert preflight.too_little_disk([said], store, settings, tmp_path) is None
    assert preflight.refusal([keeping.keeping_all(said)], store, lean, tmp_path) is not None


def keeping_as(made: Plan, keep: str) -> Plan:
    """``made``, of a recipe that says what stays."""
    cache = Caching.model_validate({"keep": keep})
    recipe = made.build.recipe.model_copy(update={"cache": cache})
    return replace(made, build=replace(made.build, recipe=recipe))


def test_run_refuses_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("PHIPIPE_CACHE", str(cache))
    monkeypatch.setenv("PHIPIPE_MEMORY_LIMIT_GIB", "0.01")

    def phipipe(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["phipipe", *words, str(QUICKSTART)])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        return int(ending.value.code or 0), capsys.readouterr().err

    code, said = phipipe("plan")
    assert code == 0
    assert "run would refuse: `quickstart` does not fit this machine" in said
    code, said = phipipe("run", "--out", str(tmp_path / "out"))
    assert code == 6
    assert "error: `quickstart` does not fit this machine" in said
    assert "PHIPIPE_PREFLIGHT=off" in said
    assert list(cache.glob("objects/*/*")) == []
    assert not (tmp_path / "out").exists()
