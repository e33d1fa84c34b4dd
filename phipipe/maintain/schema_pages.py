"""Pages that are made of JSON schemas: the keys of a recipe, and what commands print as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import TypeAdapter

from phipipe import backends
from phipipe.cli import schemas
from phipipe.files import shipped
from phipipe.maintain.markdown import code, codes, page, prose, section, sentence, table
from phipipe.output import documents
from phipipe.recipe import schema
from phipipe.recipe.absent import NONE
from phipipe.steps import Json

Schema = Mapping[str, Json]
WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}
FAILURE = "failure"
MODE: Literal["serialization"] = "serialization"
DEVICE = "a [device](devices.md), or a YAML file of yours"
EXAMPLE = "phi35-android-int4.yaml"


def recipe() -> str:
    """Every key of a recipe."""
    options = {name: backends.load(name).options for name in backends.names()}
    whole = schema.build(options)
    parts = {name: part for name, part in whole["$defs"].items() if "quantize-" not in name}
    example = (shipped.folder("recipes") / EXAMPLE).read_text("utf-8").rstrip()
    variant = whole["properties"]["matrix"]["items"]
    return page(
        "Recipe",
        "A recipe is a YAML file. It names a model, a device, a backend and a precision. Every "
        "other key has a default.",
        f"```yaml\n{example}\n```",
        "The file is YAML 1.2. Anchors, duplicate keys, unknown keys and keys without a value are "
        "refused, each with its line and column. `phipipe validate RECIPE` finds all mistakes at "
        "once. `--set KEY=VALUE` overrides a key, `--only NAME` picks a variant. `phipipe "
        "schema` prints the same as a JSON schema for editors.",
        section("Keys", _keys(whole, required=("name", "source", "device", "precision"))),
        section(
            "Variants",
            "`matrix` is a list of variants. A variant's keys replace those of the recipe. Each "
            "variant is one build. The steps that variants have in common run once.",
            "Sections are merged key by key, so a variant inherits what it does not name. `none` "
            "takes an optional key back: what holds without the key holds again. It works for keys "
            "without a default, for `weights` as a whole, and for entries of `gates`, `tolerance` "
            "and `map`; also with `--set`. `--set` replaces the value that it names: "
            "`--set 'weights={}'` leaves none of its keys.",
            "In `quantize.map` the patterns of a variant, and those of `--set`, stand before the "
            "recipe's, since the first that matches decides. Those of the recipe that they cover "
            "go. `--set quantize.map.layers.0.mlp.down_proj.bits=8` takes a pattern with its dots.",
            f"Keys of a variant: {codes(variant['properties'])}.",
        ),
        *(
            section(name, sentence(part.get("description")), _keys(part))
            for name, part in parts.items()
        ),
        section(
            "Options of `quantize`",
            "They belong to the backend: [options of each backend](options.md).",
        ),
    )


def _keys(part: Schema, required: tuple[str, ...] = ()) -> str:
    required = required or tuple(part.get("required", ()))
    rows = [
        [
            code(key),
            DEVICE if key == "device" else kind(value, has_null=False),
            "required" if key in required else _default(value),
            prose(value.get("description")),
        ]
        for key, value in part.get("properties", {}).items()
    ]
    return table(["key", "value", "default", "meaning"], rows)


def _default(value: Schema) -> str:
    """The default as a recipe would write it; nothing for a section, whose keys have their own."""
    default = value.get("default")
    if isinstance(default, dict):
        default = {key: inner for key, inner in default.items() if inner not in (None, {}, [])}
    if default in (None, {}, []) or (isinstance(default, dict) and len(default) > 1):
        return ""
    return code(default if isinstance(default, str) else json.dumps(default))


def outputs() -> str:
    """Every document that a command prints with ``--json``."""
    every = {**schemas.DOCUMENTS, FAILURE: documents.Failure}
    adapters = [(name, MODE, TypeAdapter[Json](shape)) for name, shape in every.items()]
    roots, whole = TypeAdapter.json_schemas(adapters)
    parts = schema.untitled(whole["$defs"])
    commands = [
        [code(f"phipipe {name.replace('-', ' ')} --json"), kind(root)]
        for (name, _), root in roots.items()
        if name != FAILURE
    ]
    objects = [
        section(name, sentence(part.get("description")), _fields(part), level=3)
        for name, part in sorted(parts.items())
        if "properties" in part
    ]
    return page(
        "JSON outputs",
        "With `--json` a command prints one JSON document on stdout, also where it fails. "
        "Progress goes to stderr. Sizes are bytes, times are ISO 8601 in UTC. Every field is "
        "always there; null means that there is no such thing. Names only ever join.",
        "A command that failed before it had a result prints [Failure](#failure). Its `code` is "
        "the [exit code](exit-codes.md). `phipipe schema COMMAND` prints the JSON schema of a "
        "command's output; the schemas lie in `schemas/output/` of the repository.",
        section("Commands", table(["command", "prints"], commands)),
        section("Objects", "In alphabetical order.", *objects),
    )


def _fields(part: Schema) -> str:
    rows = [[code(key), kind(value)] for key, value in part["properties"].items()]
    return table(["field", "value"], rows)


def kind(value: Schema, *, has_null: bool = True) -> str:
    """The kind of a value in words; objects lead to their section. Without ``has_null`` nothing is
    said of null."""
    if "$ref" in value:
        name = str(value["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in value:
        return code(value["const"])
    if "enum" in value:
        return codes(value["enum"], " or ")
    if choices := value.get("anyOf") or value.get("oneOf"):
        told = [choice for choice in choices if choice != {"const": NONE}]  # in words, once
        kept = [choice for choice in told if has_null or choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(map(kind, kept)))
    if value.get("type") == "array":
        return _list(value)
    if value.get("type") == "object":
        return _mapping(value)
    return f"{WORDS.get(str(value.get('type')), 'any value')}{_range(value)}"


def _list(value: Schema) -> str:
    items = value.get("items")
    return f"list of {kind(items)}" if items and items != {} else "list"


def _mapping(value: Schema) -> str:
    inner = value.get("additionalProperties")
    if isinstance(inner, dict) and inner:
        return f"mapping to {kind(inner)}"
    if value.get("properties"):
        first = next(iter(value["properties"].values()))
        first = first.get("anyOf", [first])[0]
        return f"mapping to {kind(first)}" if "$ref" in first else "mapping"
    return "mapping"


def _range(value: Schema) -> str:
    low, high = value.get("minimum"), value.get("maximum")
    if low is not None and high is not None:
        return f", {low:,} to {high:,}"
    above = value.get("exclusiveMinimum")
    if above is not None:
        return f", above {above:,}" + (f" and at most {high:,}" if high is not None else "")
    if low is not None:
        return f", at least {low:,}"
    return f", at most {high:,}" if high is not None else ""
