"""The schema that editors use agrees with the models; devices and starters are what they claim."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from testing.clock import DEADLINE_MS
from testing.places import RECIPES, ROOT

from phipipe import backends
from phipipe.errors import PhipipeError
from phipipe.metrics import METRICS
from phipipe.planning import starter
from phipipe.recipe import device, loading, schema

OPTIONS = backends.OptionsOf()
BASE: dict[str, Any] = {
    "name": "x",
    "source": {"builtin": "tiny-phi3"},
    "device": "cpu-x86_64",
    "precision": "int4",
}


SCHEMA = schema.build(OPTIONS)


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    made = schema.build(OPTIONS)
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def test_the_schema_in_the_repository_is_up_to_date() -> None:
    assert (ROOT / "schemas" / "recipe.schema.json").read_text("utf-8") == schema.dump(OPTIONS)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
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
        {"cache": {"keep": "artifacts"}},
        {"cache": {"keep": "some"}},
        {"cache": "all"},
        {"matrix": [{"precision": "int8"}, {"evaluate": {"tokens": 512}}]},
        {"matrix": []},
        {"matrix": [{"nope": 1}]},
    ],
    ids=str,
)
def test_schema_and_models_agree(
    validator: Draft202012Validator, tmp_path: Path, change: dict[str, Any]
) -> None:
    data = BASE | change
    (tmp_path / "r.yaml").write_text(json.dumps(data), "utf-8")
    try:
        loading.load(tmp_path / "r.yaml", options=OPTIONS)
    except PhipipeError:
        fits = False
    else:
        fits = True
    assert (not list(validator.iter_errors(data))) == fits


FULL: dict[str, Any] = BASE | {
    "backend": "onnxruntime",
    "source": {"repo": "a/b", "revision": "0" * 40},
    "quantize": {"block_size": 32, "exclude": ["*"], "symmetric": False},
    "evaluate": {
        "text": {"dataset": {"repo": "a/b", "revision": "f" * 40, "file": "c/d.txt"}},
        "tokens": 8192,
        "window": 512,
        "gates": {"top1": {"min": 0.5}, "kld_mean": {"max": 0.1}},
    },
    "measure": {"prompt_tokens": 8, "new_tokens": 8, "repetitions": 1},
    "cache": {"keep": "all"},
    "tags": ["a"],
    "matrix": [
        {"name": "a"},
        {"precision": "int8", "quantize": {"mixed": "none"}},
        {"backend": "torch", "precision": "fp32"},
    ],
}
# In these, a value of another kind, out of bounds or misspelt; nothing that compares two values.
WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    10**9,
    "",
    "x",
    "X",
    "a/b",
    "../b",
    "a/../b",
    "/a",
    "main",
    [],
    [1],
    {},
    {"x": 1},
]
RIGHT: list[Any] = [
    "int8",
    "torch",
    "cpu-arm64",
    "./m.yaml",
    "stories",
    "0" * 40,
    4096,
    64,
    16,
    True,
    0.25,
    ["b"],
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything within ``value``."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, deeper in inner:
        yield (*path, key)
        yield from places(deeper, (*path, key))


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe with one value replaced, taken out, or set under another key."""
    data: dict[str, Any] = copy.deepcopy(draw(st.sampled_from([FULL, BASE])))
    path = draw(st.sampled_from(sorted(places(data), key=str)))
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
    if how == "replace":
        inner[path[-1]] = draw(st.sampled_from(WRONG + RIGHT))
    elif how == "remove" or not isinstance(inner, dict):
        del inner[path[-1]]
    elif how == "rename":
        inner[draw(st.sampled_from([f"{path[-1]}s", "min", "max", "path", "file", "name"]))] = (
            inner.pop(path[-1])
        )
    else:
        keys = ["path", "builtin", "file", "min", "quantize", "tags", "x", "ppl"]
        inner[draw(st.sampled_from(keys))] = draw(st.sampled_from(WRONG + RIGHT))
    return data


# What JSON schema cannot compare; the messages of ``recipe.loading`` tell these apart.
BEYOND = (
    "is longer than",
    "no value passes",
    "a second variant",
    "more than 80 characters",
    "zero points",
)


def complaints(path: Path, data: Any) -> list[str]:
    """What the models and the list of devices say about ``data``, but for what is beyond a
    schema."""
    path.write_text(json.dumps(data), "utf-8")
    try:
        for build in loading.load(path, options=OPTIONS):
            if not build.recipe.device.endswith((".yaml", ".yml")):
                device.load(build.recipe.device)
    except PhipipeError as error:
        lines = [line for line in error.message.splitlines() if not line.startswith("    ")]
        return [line for line in lines if not any(words in line for words in BEYOND)]
    return []


@pytest.mark.full
@settings(max_examples=600, deadline=DEADLINE_MS)
@given(data=mutated())
def test_schema_and_models_agree_on_mutations(tmp_path: Path, data: dict[str, Any]) -> None:
    problems = complaints(tmp_path / "r.yaml", data)
    found = [error.message for error in Draft202012Validator(SCHEMA).iter_errors(data)]
    if (
        "matrix" in data and not found
    ):  # a variant may lack what the rest lacks, too; the schema sees halves only
        problems = [problem for problem in problems if "is missing" not in problem]
    assert bool(found) == bool(problems), (found, problems)


def described(node: Any, definitions: dict[str, Any], path: str = "") -> Iterator[tuple[str, bool]]:
    """Every property in a schema, and whether it or what it refers to has a description."""
    if isinstance(node, list):
        for inner in node:
            yield from described(inner, definitions, path)
    if not isinstance(node, dict):
        return
    for name, value in (
        node.get("properties", {}).items() if isinstance(node.get("properties"), dict) else ()
    ):
        if set(value) <= {"const", "items"} or (
            set(value) == {"$ref"} and "quantize" in value["$ref"]
        ):
            continue  # part of an `if` or `then`; it describes nothing new
        target = definitions.get(str(value.get("$ref", "")).removeprefix("#/$defs/"), {})
        yield f"{path}.{name}", bool(value.get("description") or target.get("description"))
    for key, value in node.items():
        yield from described(value, definitions, f"{path}.{key}")


def test_every_property_has_a_description() -> None:
    made = schema.build(OPTIONS)
    found = dict(described(made, made["$defs"]))
    assert len(found) > 50
    assert [path for path, has in found.items() if not has] == []


def test_editors_are_told_names_defaults_and_metrics() -> None:
    made = schema.build(OPTIONS)
    fields, gates = made["properties"], made["$defs"]["Evaluate"]["properties"]["gates"]
    assert fields["backend"]["enum"] == list(backends.names())
    assert fields["backend"]["default"] == "onnxruntime"
    assert fields["device"]["anyOf"][0]["enum"] == list(device.names())
    assert made["$defs"]["Evaluate"]["properties"]["window"]["default"] == 512
    assert {"const": "auto"} in made["$defs"]["Evaluate"]["properties"]["tokens"]["anyOf"]
    assert set(gates["anyOf"][0]["properties"]) == set(METRICS)
    assert all(
        definition.get("additionalProperties") is False for definition in made["$defs"].values()
    )
    assert made["additionalProperties"] is False


def test_the_schema_is_the_same_text_whatever_the_order_of_backends() -> None:
    one = {name: OPTIONS[name] for name in backends.names()}
    assert schema.dump(one) == schema.dump(dict(reversed(one.items())))


def test_devices_have_titles_of_their_own() -> None:
    titles = [device.load(name).title for name in device.names()]
    assert len(set(titles)) == len(titles)


def test_a_starter_begins_with_its_commands_and_its_schema(tmp_path: Path) -> None:
    text = "title: Mine\nunits: [{api: cpu, precisions: [int4]}]\nsources: [https://example.org/]\n"
    (tmp_path / "d.yaml").write_text(text, "utf-8")
    given = {
        "device": str(tmp_path / "d.yaml"),
        "precision": "int4",
        "backend": "torch",
        "source": "x",
    }
    path = tmp_path / "a.yaml"
    starter.write(path, **given)
    assert path.read_text("utf-8").startswith(
        "# yaml-language-server: $schema=recipe.schema.json\n"
    )
    assert f"\n#   phipipe run {path}\n" in path.read_text("utf-8")
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "recipe.schema.json").write_text("{}")
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "my recipe.yaml"
    starter.write(path, **given)
    assert "$schema=../schemas/recipe.schema.json\n" in path.read_text("utf-8")
    assert f"#   phipipe run '{path}'\n" in path.read_text("utf-8")
