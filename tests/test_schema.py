"""The schema that editors use agrees with the models; devices and starters are what they claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from phipipe import backends, device, recipe, schema, starter
from phipipe.errors import PhipipeError, RecipeError, TargetError

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = backends.OptionsOf()
BASE: dict[str, Any] = {"name": "x", "source": {"builtin": "tiny-phi3"}, "device": "cpu-x86_64", "precision": "int4"}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    made = schema.build(OPTIONS)
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def test_the_schema_in_the_repository_is_up_to_date() -> None:
    assert (ROOT / "schemas" / "recipe.schema.json").read_text("utf-8") == schema.dump(OPTIONS)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_fits_the_schema(validator: Draft202012Validator, path: Path) -> None:
    assert not list(validator.iter_errors(yaml.safe_load(path.read_text("utf-8"))))
    assert "yaml-language-server: $schema=../schemas/recipe.schema.json" in path.read_text("utf-8")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"name": "X"},
        {"name": 3},
        {"precision": "int5"},
        {"precision": None},
        {"unknown": 1},
        {"source": {"path": "a"}},
        {"source": {}},
        {"source": {"builtin": "tiny-phi3", "path": "a"}},
        {"source": {"repo": "a/b"}},
        {"source": {"repo": "a/b", "revision": "main"}},
        {"source": {"repo": "a/b", "revision": "a" * 40}},
        {"backend": "torch"},
        {"backend": "nope"},
        {"backend": "torch", "quantize": {"block_size": 32}},
        {"quantize": {"block_size": 32}},
        {"quantize": {"block_size": 33}},
        {"quantize": {"nope": 1}},
        {"evaluate": {"tokens": 1024}},
        {"evaluate": {"tokens": 1}},
        {"evaluate": {"tokens": "1024"}},
        {"evaluate": {"text": {"file": "a"}}},
        {"evaluate": {"text": {"file": "a", "builtin": "stories"}}},
        {"evaluate": {"gates": {"top1": {"min": 0.5}}}},
        {"evaluate": {"gates": {"top1": {}}}},
        {"evaluate": {"gates": {"nope": {"min": 0.5}}}},
        {"tags": "a"},
        {"matrix": [{"precision": "int8"}, {"evaluate": {"tokens": 512}}]},
        {"matrix": []},
        {"matrix": [{"nope": 1}]},
    ],
    ids=str,
)
def test_schema_and_models_agree(validator: Draft202012Validator, tmp_path: Path, change: dict[str, Any]) -> None:
    data = BASE | change
    (tmp_path / "r.yaml").write_text(json.dumps(data), "utf-8")
    try:
        recipe.load(tmp_path / "r.yaml", options=OPTIONS)
    except PhipipeError:
        fits = False
    else:
        fits = True
    assert (not list(validator.iter_errors(data))) == fits


@pytest.mark.parametrize("name", device.names())
def test_every_device_states_its_sources(name: str) -> None:
    found = device.load(name)
    assert found.name == name
    assert all(url.startswith("https://") for url in found.sources)


def test_devices_have_titles_of_their_own() -> None:
    titles = [device.load(name).title for name in device.names()]
    assert len(set(titles)) == len(titles)


def test_a_device_of_the_users_own_is_read_beside_the_recipe(tmp_path: Path) -> None:
    text = "title: Mine\nunits: [{api: cpu, precisions: [int4]}]\nsources: [https://example.org/]\n"
    (tmp_path / "mine.yaml").write_text(text, "utf-8")
    assert device.load("./mine.yaml", tmp_path).title == "Mine"
    (tmp_path / "mine.yaml").write_text(text.replace("cpu", "gpu"), "utf-8")
    with pytest.raises(RecipeError, match=r"mine\.yaml:2:15"):
        device.load("./mine.yaml", tmp_path)


def test_an_unknown_device_is_guessed() -> None:
    with pytest.raises(TargetError, match="did you mean `intel-npu`"):
        device.load("intel-npuu")


@pytest.mark.parametrize("name", ["a.yaml", "My Recipe.yaml", "-x-.yaml"])
@pytest.mark.parametrize("source", ["builtin:tiny-phi3", "some folder", "a/b@" + "0" * 40])
def test_a_starter_loads(tmp_path: Path, name: str, source: str) -> None:
    path = tmp_path / name
    starter.write(path, device="cpu-x86_64", precision="int4", backend="onnxruntime", source=source)
    (build,) = recipe.load(path, options=OPTIONS)
    assert build.recipe.precision == "int4"
    with pytest.raises(RecipeError, match="is there already"):
        starter.write(path, device="cpu-x86_64", precision="int4", backend="onnxruntime", source=source)
