"""A key without a value is refused wherever it stands, by loading and by the editors' schema."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from testing.clock import DEADLINE_MS

from phipipe import backends
from phipipe.errors import RecipeError
from phipipe.metrics import METRICS
from phipipe.recipe import loading, schema
from phipipe.recipe.variants import VARIANT_KEYS

OPTIONS = backends.OptionsOf()
SCHEMA = schema.build(OPTIONS)
VALIDATOR = Draft202012Validator(SCHEMA)
BASE: dict[str, Any] = {
    "name": "x",
    "source": {"builtin": "tiny-phi3"},
    "device": "cpu-x86_64",
    "precision": "int4",
}
Keys = tuple[str, ...]


def paths(node: Any, seen: tuple[str, ...] = ()) -> Iterator[Keys]:
    """Every path of keys that ``node`` of the schema knows; of a mapping with any keys, one."""
    for inner in node.get("anyOf", ()):
        yield from paths(inner, seen)
    if (target := node.get("$ref", "").removeprefix("#/$defs/")) and target not in seen:
        yield from paths(SCHEMA["$defs"][target], (*seen, target))
    entry = node.get("additionalProperties")
    (one, *_) = node.get("propertyNames", {}).get("enum", ["lm_head"])
    named = node.get("properties", {}) | ({one: entry} if isinstance(entry, dict) else {})
    for key, value in named.items():
        yield (key,)
        if key != "matrix":
            yield from ((key, *deeper) for deeper in paths(value, seen))


def every_path() -> list[tuple[str, Keys]]:
    """With the backend whose `quantize` has it."""
    found = [("onnxruntime", path) for path in dict.fromkeys(paths(SCHEMA)) if path[0] != "matrix"]
    for name in backends.names():
        own = dict.fromkeys(paths(SCHEMA["$defs"][f"quantize-{name}"]))
        found += [(name, ("quantize", *path)) for path in own]
    return found


PATHS = every_path()


def put(data: dict[str, Any], path: Keys) -> None:
    for key in path[:-1]:
        data = data.setdefault(key, {})
    data[path[-1]] = None


def flat(errors: Any) -> Iterator[ValidationError]:
    for error in errors:
        yield error
        yield from flat(error.context)


def refused(tmp_path: Path, text: str, sets: list[str]) -> str:
    (tmp_path / "r.yaml").write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        loading.load(tmp_path / "r.yaml", options=OPTIONS, sets=sets)
    return caught.value.message


def test_all_sections_have_paths() -> None:
    known = {path for _, path in PATHS}
    some = {("unit",), ("weights", "learn"), ("calibrate", "text", "dataset", "file")}
    some |= {("evaluate", "gates", name, "max") for name in METRICS}
    some |= {("quantize", "rotate"), ("quantize", "map", "lm_head", "group_size")}
    some |= {("quantize", "prefill_length"), ("source", "base", "repo"), ("tags",)}
    assert some <= known
    assert len(PATHS) > 150


@settings(max_examples=300, deadline=DEADLINE_MS)
@given(found=st.sampled_from(PATHS), varied=st.booleans())
def test_loading_and_schema_refuse_every_key_without_a_value(
    tmp_path: Path, found: tuple[str, Keys], varied: bool
) -> None:
    backend, path = found
    data: dict[str, Any] = json.loads(json.dumps(BASE | {"backend": backend}))
    varied = varied and path[0] in VARIANT_KEYS and path[0] not in ("name", "source")
    place: tuple[str | int, ...] = path
    if varied:
        data["matrix"] = [{"name": "v"}]
        place = ("matrix", 0, *path)
    put(data["matrix"][0] if varied else data, path)
    message = refused(tmp_path, json.dumps(data), [])
    assert f"`{path[-1]}` has no value; " in message
    assert "got nothing" not in message
    assert any(tuple(error.absolute_path) == place for error in flat(VALIDATOR.iter_errors(data)))


@settings(max_examples=60, deadline=DEADLINE_MS)
@given(found=st.sampled_from([one for one in PATHS if one[1][0] != "source"]))
def test_set_without_a_value_is_refused_with_the_keys_name(
    tmp_path: Path, found: tuple[str, Keys]
) -> None:
    backend, path = found
    text = json.dumps(BASE | {"backend": backend})
    message = refused(tmp_path, text, [f"{'.'.join(path)}="])
    assert f"--set {'.'.join(path)}=: `{path[-1]}` has no value; " in message


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("unit:", "5:6: `unit` has no value; write one, `none`, or leave the key out"),
        ("weights:", "5:9: `weights` has no value; write one, `none`, or leave the key out"),
        ("tags:", "5:6: `tags` has no value; write one, or leave the key out"),
        ("calibrate: {text: }", "5:19: `text` has no value; write one, `none`, or leave the key"),
        ("calibrate: {text: {file: }}", "5:26: `file` has no value; write one, or leave the key"),
        (
            "evaluate: {generate: }",
            "5:22: `generate` has no value; `generate: {}` takes all defaults, `none`, or leave",
        ),
        ("evaluate: {gates: {top1: }}", "5:26: `top1` has no value; write one, `none`, or leave"),
        ("quantize: {rotate: ~}", "5:20: `rotate` has no value; write one, `none`, or leave"),
        ("matrix: [{unit: cpu}, {name: b, unit: }]", "5:39: `unit` has no value"),
        ("unit:\nmatrix: [{unit: cpu}]", "5:6: `unit` has no value"),
        ("quantize: {rotate: }\nmatrix: [{backend: torch}]", "5:20: `rotate` has no value"),
    ],
)
def test_the_place_and_what_can_be_written_are_told_once(
    tmp_path: Path, line: str, told: str
) -> None:
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in BASE.items())
    message = refused(tmp_path, f"{text}\n{line}\n", [])
    assert f"{os.sep}r.yaml:{told}" in message
    assert message.count("r.yaml:") == 1


def test_an_unknown_key_is_told_as_unknown(tmp_path: Path) -> None:
    assert "unknown key `unti`" in refused(tmp_path, json.dumps(BASE | {"unti": None}), [])
