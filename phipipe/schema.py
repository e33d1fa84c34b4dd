"""The JSON schema of recipes: for editors' YAML language servers, generated from the models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from phipipe import device
from phipipe.recipe import VARIANT_KEYS, Recipe


def build(options: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file; ``options`` are the backends' ``quantize:`` models."""
    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    fields: dict[str, Any] = schema["properties"]
    for name in ("Source", "Text"):
        choices = [key for key in definitions[name]["properties"] if key != "revision"]
        definitions[name]["oneOf"] = [{"required": [key]} for key in choices]
        for key, value in definitions[name]["properties"].items():  # absent, or a value: never null
            definitions[name]["properties"][key] = _not_null(value)
    definitions["Source"]["dependentRequired"] = {"repo": ["revision"], "revision": ["repo"]}
    definitions["Gate"]["anyOf"] = [{"required": ["min"]}, {"required": ["max"]}]
    for key, value in definitions["Gate"]["properties"].items():
        definitions["Gate"]["properties"][key] = _not_null(value)
    fields["backend"]["enum"] = sorted(options)
    fields["device"] |= {"anyOf": [{"enum": list(device.names())}, {"pattern": r"\.ya?ml$"}]}
    rules = []
    for name, model in sorted(options.items()):
        made = model.model_json_schema()
        definitions |= made.pop("$defs", {})
        definitions[f"quantize-{name}"] = made
        chosen = {"properties": {"backend": {"const": name}}}
        if name != fields["backend"]["default"]:
            chosen["required"] = ["backend"]  # type: ignore[assignment]
        then = {"properties": {"quantize": {"$ref": f"#/$defs/quantize-{name}"}}}
        rules.append({"if": chosen, "then": then})
    schema["allOf"] = rules
    variant = {key: fields[key] for key in VARIANT_KEYS} | {"name": {"type": "string"}}
    fields["matrix"] = {
        "description": "Variants: each is laid on the rest of the recipe, and is one build.",
        "type": "array",
        "minItems": 1,
        "items": {"type": "object", "additionalProperties": False, "properties": {**variant, "evaluate": _partial()}},
    }
    needed = [key for key in schema["required"] if key not in VARIANT_KEYS or key == "name"]
    varied = [key for key in schema["required"] if key not in needed]
    schema["required"] = needed
    schema["anyOf"] = [{"required": varied}, {"required": ["matrix"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "phipipe recipe"}


def _not_null(value: dict[str, Any]) -> dict[str, Any]:
    kept = [choice for choice in value.get("anyOf", ()) if choice.get("type") != "null"]
    rest = {key: inner for key, inner in value.items() if key not in ("anyOf", "default")}
    return {**rest, **kept[0]} if len(kept) == 1 else value


def _partial() -> dict[str, Any]:
    return {"$ref": "#/$defs/Evaluate"}


def dump(options: Mapping[str, type[BaseModel]]) -> str:
    """The schema as the text of ``schemas/recipe.schema.json``."""
    return json.dumps(build(options), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
