"""A package's own recipe, planned again: what is asked for, what is refused, what is taken over."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testing import shapes
from testing.kitchen import Kitchen, step
from testing.places import ROOT

from phipipe import backends
from phipipe.errors import SourceError
from phipipe.evaluate import reports
from phipipe.evaluate.speed import host
from phipipe.execution import rebuild, replay
from phipipe.execution.bench import Bench
from phipipe.execution.rebuild import Given
from phipipe.hub import take
from phipipe.package import package
from phipipe.package.manifest_schema import Manifest
from phipipe.planning import plans, preparation, spelled
from phipipe.recipe import loading, written
from phipipe.recipe.build import Build
from phipipe.settings import Settings
from phipipe.settings.apart import cache_in
from phipipe.steps import Json
from phipipe.store import digests, files, keys
from phipipe.store.store import Store

TEXT = "Once upon a time there was a fox who counted words.\n" * 200


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    made = Kitchen(tmp_path / "kitchen")
    made.params["recipe"]["measure"] = {"prompt_tokens": 128, "new_tokens": 64, "repetitions": 5}
    return made


@pytest.fixture
def workspace(tmp_path: Path, own_cache: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def with_a_text(kitchen: Kitchen) -> str:
    """Have the package made from a text of its maker's own; its digest."""
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    taken = step("hub/take", tools=False, files=["notes.txt"])
    taken["outputs"] = [{"path": "notes.txt", "size": len(TEXT), "sha256": digest, "mtime_ns": 1}]
    kitchen.params["steps"]["text"] = taken
    kitchen.params["recipe"]["evaluate"]["text"] = {"file": "notes.txt"}
    return digest


def papers(plan: Any) -> dict[str, Any]:
    (last,) = (one for one in plan.steps if one.provenance)
    found: dict[str, Any] = dict(last.params)
    return found


def test_the_plan_is_of_the_packages_own_recipe(kitchen: Kitchen, workspace: Path) -> None:
    made = package.open_(kitchen.cook())
    plan = rebuild.planned(made, Given(), workspace)
    recipe = papers(plan)["recipe"]
    asked = made.recipe.as_json()
    assert {key: recipe[key] for key in asked if key != "quantize"} == {
        key: value for key, value in asked.items() if key != "quantize"
    } | {"evaluate": recipe["evaluate"]}
    assert asked["quantize"].items() <= recipe["quantize"].items()
    assert plan.build.name == made.name


SHIPPED = [  # but those of models that see, which no shape alone stands for
    path
    for path in sorted((ROOT / "recipes").glob("*.yaml"))
    if "image_kld_mean" not in path.read_text("utf-8")
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_recipe_as_a_package_has_it_is_planned_to_the_same(
    path: Path, tmp_path: Path, own_cache: Path
) -> None:
    """What stands in a package's `recipe.yaml` gives that very `recipe.yaml` again, without a
    warning that was not there. Models of the hub are taken for a Phi-3-mini."""
    builds, error = loading.gather(path, options=backends.OptionsOf())
    assert error is None
    for build in builds:
        again = tmp_path / "again.yaml"
        if build.recipe.source.builtin:
            (plan,) = plans.prepared([build], elsewhere=True)
            first = papers(plan)["recipe"]
            again.write_text(written.text(first), "utf-8")
            (second,) = plans.planned(again, elsewhere=True)
            assert papers(second)["recipe"] == first
        else:
            chosen, advice = outlined(build)
            (other,) = loading.load(
                laid(again, build, chosen), options=backends.OptionsOf(), only=[build.name]
            )
            assert outlined(other) == (chosen, advice)


def laid(path: Path, build: Build, chosen: dict[str, Json]) -> Path:
    """The recipe of ``build`` as its package has it."""
    recipe = build.recipe.model_dump(mode="json", exclude_none=True)
    path.write_text(written.text(recipe | {"name": build.name, "quantize": chosen}), "utf-8")
    return path


def outlined(build: Build) -> tuple[dict[str, Json], list[str]]:
    """The options of ``build`` as a package spells them out, and what rules say of it."""
    whole = shapes.phi3()
    job = preparation.job_of(build, whole)
    warnings = preparation.outlined(build, whole).warnings
    return spelled.options(job), [one.rule for one in warnings]


# --- the maker's own files


def test_a_text_that_does_not_travel_is_asked_for_by_digest(
    kitchen: Kitchen, workspace: Path
) -> None:
    digest = with_a_text(kitchen)
    made = package.open_(kitchen.cook())
    with pytest.raises(SourceError, match=f"the evaluation text `notes.txt` .*{digest}") as missing:
        rebuild.planned(made, Given(), workspace)
    assert missing.value.hint == "give them: --text FILE"


def test_a_text_is_known_by_its_content_whatever_it_is_called(
    kitchen: Kitchen, workspace: Path, tmp_path: Path
) -> None:
    with_a_text(kitchen)
    made = package.open_(kitchen.cook())
    here = tmp_path / "renamed.md"
    here.write_text(TEXT, "utf-8")
    plan = rebuild.planned(made, Given(texts=[here]), workspace)
    (text,) = (one for one in plan.steps if one.name == "text")
    assert text.outside["files"].files == ("notes.txt",)
    assert papers(plan)["recipe"]["evaluate"]["text"] == {"file": "notes.txt"}


def test_another_text_is_refused(kitchen: Kitchen, workspace: Path, tmp_path: Path) -> None:
    made = package.open_(kitchen.cook())
    other = tmp_path / "other.txt"
    other.write_text(TEXT, "utf-8")
    with pytest.raises(SourceError, match="is none of the texts that this package was made from"):
        rebuild.planned(made, Given(texts=[other]), workspace)


@pytest.mark.parametrize("option", ["source", "adapter", "device"])
def test_what_the_package_was_not_made_from_is_refused(
    kitchen: Kitchen, workspace: Path, tmp_path: Path, option: str
) -> None:
    made = package.open_(kitchen.cook())
    with pytest.raises(SourceError, match=f"was made from no {option} of its maker's own"):
        rebuild.planned(made, Given(**{option: tmp_path}), workspace)


def local(kitchen: Kitchen, digest: str) -> None:
    """Have the package made from a folder of its maker's, which is called `my-model`."""
    kitchen.params["source"] |= {"kind": "path", "name": "my-model"}
    kitchen.params["recipe"]["source"] = {"path": "my-model"}
    kitchen.params["steps"]["source"]["digest"] = digest


def test_a_local_original_is_known_by_its_digest_whatever_it_is_called(
    kitchen: Kitchen, workspace: Path, tmp_path: Path, own_cache: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for path in take.BUILTIN_MODELS["tiny-phi3"].iterdir():
        files.copy(path, folder / path.name)
    local(kitchen, digests.digest(take.outside(folder), own_cache))
    made = package.open_(kitchen.cook())
    plan = rebuild.planned(made, Given(source=folder), workspace)
    assert papers(plan)["source"]["name"] == "my-model"
    assert papers(plan)["recipe"]["source"] == {"path": "my-model"}
    (folder / "generation_config.json").write_text("{}", "utf-8")
    with pytest.raises(SourceError, match="is not the checkpoint that this package was made from"):
        rebuild.planned(made, Given(source=folder), workspace)


def test_nothing_here_is_read_because_a_package_names_it(
    kitchen: Kitchen, workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder of that name beside us, or a path in the recipe, is none that the user gave."""
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    local(kitchen, "a" * 64)
    made = package.open_(kitchen.cook())
    with pytest.raises(SourceError, match="the original `my-model` \\(digest"):
        rebuild.planned(made, Given(), workspace)


# --- what is taken over


def measured(kitchen: Kitchen, **changed: Json) -> Manifest:
    """A package whose measurement has the key that the bench gives it."""
    speed = kitchen.speed
    taken: dict[str, Any] = step("evaluate/measure", "quantize")
    taken["params"] = {"backend": "onnxruntime"}
    text = reports.dump(speed).encode()
    digest = hashlib.sha256(text).hexdigest()
    taken["outputs"] = [{"path": "speed.json", "size": len(text), "sha256": digest, "mtime_ns": 1}]
    record = {name: taken[name] for name in ("runs", "version", "params", "inputs", "tools")}
    record |= {"format": keys.FORMAT, "host": speed["host"]}
    taken |= {"key": keys.key_of(record), **changed}
    kitchen.params["steps"]["measure"] = taken
    return package.open_(kitchen.cook())


def test_a_measurement_is_taken_over_as_it_was_written(
    kitchen: Kitchen, workspace: Path, own_cache: Path
) -> None:
    made, store = measured(kitchen), Store(own_cache)
    plan = rebuild.planned(made, Given(), workspace)
    found = replay.take_over(plan, made, store)
    assert found.steps == ("measure",)
    (taken,) = (one for one in found.plan.steps if one.name == "measure")
    assert dict(taken.host or {}) == kitchen.speed["host"] != host()
    stored = store.lookup(made.steps["measure"].key)
    assert stored is not None
    assert (stored.path / "speed.json").read_bytes() == reports.dump(kitchen.speed).encode()


@pytest.mark.parametrize(
    "changed",
    [
        {"key": "0" * 64},
        {"outputs": [{"path": "speed.json", "size": 1, "sha256": "0" * 64, "mtime_ns": 1}]},
        {"runs": "evaluate/other"},
    ],
)
def test_what_cannot_be_written_again_is_measured_again(
    kitchen: Kitchen, workspace: Path, own_cache: Path, changed: dict[str, Json]
) -> None:
    made, store = measured(kitchen, **changed), Store(own_cache)
    found = replay.take_over(rebuild.planned(made, Given(), workspace), made, store)
    assert found.steps == ()
    assert store.lookup(made.steps["measure"].key) is None


def test_a_step_that_counts_as_taken_elsewhere_has_that_machines_key(
    kitchen: Kitchen, workspace: Path, own_cache: Path
) -> None:
    made, store = measured(kitchen), Store(own_cache)
    found = replay.take_over(rebuild.planned(made, Given(), workspace), made, store)
    bench = Bench(store, Settings.read(), lambda line: None)
    (taken,) = (one for one in found.plan.steps if one.name == "measure")
    record = bench._records.of(taken.__class__(**{**vars(taken), "toolchain": None}), {}, {})
    assert record["host"] == kitchen.speed["host"]


# --- a cache apart


def test_a_cache_apart_is_everybodys_while_it_lasts(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_REMOTE", "file:///somewhere")
    before, tools = Settings.read().cache, Settings.read().toolchains
    with cache_in(tmp_path / "apart") as apart:
        assert (apart.cache, apart.remote) == (tmp_path / "apart", None)
        assert Settings.read().cache == tmp_path / "apart"
        assert apart.toolchains == Settings.read().toolchains == tools.absolute()
    assert Settings.read().cache == before
    assert "PHIPIPE_TOOLCHAINS" in os.environ or Settings.read().toolchains == tools


def test_what_the_cache_has_of_the_hub_is_lent_by_digest(
    kitchen: Kitchen, workspace: Path, tmp_path: Path, own_cache: Path
) -> None:
    own, key, commit = Store(own_cache), "b" * 64, "2fe192450127e6a83f7441aef6e3ca586c338b77"
    hub = {"kind": "model", "repo": "microsoft/Phi-3.5-mini-instruct", "revision": commit}
    with own.scratch() as scratch:
        (scratch / "out").mkdir()
        (scratch / "out" / "config.json").write_text("{}", "utf-8")
        record = {"runs": "hub/fetch", "version": 1, "params": hub, "inputs": {}, "tools": {}}
        stored = own.commit(key, scratch / "out", record)
    asked = own_cache / "hub" / "models" / hub["repo"] / commit
    for name, text in {"listing.json": "[]", "view/config.json": "{}", "parts/x": "."}.items():
        (asked / name).parent.mkdir(parents=True, exist_ok=True)
        (asked / name).write_text(text, "utf-8")
    fetched = step("hub/fetch", tools=False, **hub)
    kitchen.params["steps"]["source"] = fetched | {"key": key, "digest": stored.digest}
    made, other = package.open_(kitchen.cook()), Store(tmp_path / "apart")
    replay.lend(made, own_cache, other)
    laid = other.lookup(key)
    assert laid is not None
    assert laid.digest == stored.digest
    there = other.root / asked.relative_to(own_cache)
    assert {p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()} == {
        "listing.json",
        "view/config.json",
    }


@dataclass(frozen=True)
class Told:
    """A recipe as a manifest has it, whatever stands in it."""

    said: dict[str, Json]

    def as_json(self) -> dict[str, Json]:
        return self.said


@pytest.mark.parametrize(
    "spoil",
    [
        lambda recipe: recipe["evaluate"].update(tokens="many"),
        lambda recipe: recipe.update(device="../../secret.yaml"),
        lambda recipe: recipe["source"].update(path="/etc"),
    ],
)
def test_a_strangers_recipe_is_refused_in_one_sentence(
    kitchen: Kitchen, workspace: Path, spoil: Callable[[dict[str, Any]], object]
) -> None:
    made = package.open_(kitchen.cook())
    recipe = json.loads(json.dumps(made.recipe.as_json()))
    spoil(recipe)
    odd = made.model_copy(update={"recipe": Told(recipe)})
    with pytest.raises(SourceError):
        rebuild.planned(odd, Given(), workspace)
