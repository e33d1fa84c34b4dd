"""The JSON schema of recipes: for editors' YAML language servers, generated from the models.

It says whatever JSON schema can. What needs two values compared (``window`` ≤ ``tokens``, ``min`` ≤
``max``, names of variants, a variant merged with the rest) is left to ``recipe.loading``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel

from phipipe.metrics import ROWS
from phipipe.recipe import absent, device
from phipipe.recipe.recipe import MAX_VARIANTS, SLUG, Recipe
from phipipe.recipe.source import GGUF, MAX_FILE
from phipipe.recipe.variants import BACKEND, VARIANT_KEYS
from phipipe.steps import Json

Schema = dict[str, Json]
_COMMON = ("name", "source")  # of all variants, whatever they add to it
CHOICES = {
    "Source": ("repo", "path", "builtin", "adapter"),
    "Base": ("repo", "path", "builtin"),
    "Adapter": ("repo", "path"),
    "Text": ("builtin", "file", "dataset"),
}


def build(options: Mapping[str, type[BaseModel]]) -> Schema:
    """JSON schema (draft 2020-12) of a recipe file; ``options`` are the backends' ``quantize:``
    models."""
    schema: Schema = Recipe.model_json_schema()
    definitions: Schema = schema["$defs"]
    for name, one in definitions.items():
        _say_absence(one, name)
    _say_absence(schema)
    fields: Schema = schema["properties"]
    _sharpen(definitions)
    fields["backend"]["enum"] = sorted(options)
    fields["device"]["anyOf"] = [{"enum": list(device.names())}, {"pattern": r"\.ya?ml$"}]
    about = {"default": {}, "description": fields["quantize"]["description"]}
    fields["quantize"] = _or_none({"type": "object", **about})
    for name, model in sorted(options.items()):
        section = model.model_json_schema()
        for inner, one in section.pop("$defs", {}).items():
            _say_absence(one, inner)
            definitions[inner] = one
        _say_absence(section)
        definitions[f"quantize-{name}"] = section
    fields["matrix"] = _matrix(fields, sorted(options))
    schema["allOf"] = [_rule(name) for name in sorted(options)]
    varied = [key for key in schema["required"] if key in VARIANT_KEYS and key not in _COMMON]
    schema["required"] = [key for key in schema["required"] if key not in varied]
    schema["anyOf"] = [{"required": varied}, {"required": ["matrix"]}]
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **untitled(schema)}
    return schema | {"title": "phipipe recipe"}


def dump(options: Mapping[str, type[BaseModel]]) -> str:
    """The schema as the text of ``schemas/recipe.schema.json``."""
    return json.dumps(build(options), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _sharpen(definitions: Schema) -> None:
    """Add what the models' validators check and pydantic cannot know."""
    for name, choices in CHOICES.items():
        definitions[name]["oneOf"] = [{"required": [key]} for key in choices]
    for name in ("Source", "Base", "Adapter"):
        definitions[name]["dependentRequired"] = {"repo": ["revision"], "revision": ["repo"]}
    for name in ("Source", "Base"):
        definitions[name]["dependentRequired"]["file"] = ["repo"]
        definitions[name]["properties"]["file"] |= {"pattern": GGUF, "maxLength": MAX_FILE}
    definitions["Source"]["dependentRequired"] |= {"adapter": ["base"], "base": ["adapter"]}
    definitions["Gate"]["anyOf"] = [{"required": ["min"]}, {"required": ["max"]}]
    # A path inside a data set: no `..`, `.` or empty part, no backslash.
    definitions["Dataset"]["properties"]["file"] |= {
        "pattern": r"^[^/\\]+(/[^/\\]+)*$",
        "not": {"pattern": r"(^|/)\.\.?(/|$)"},
    }
    gates = definitions["Evaluate"]["properties"]["gates"]
    gates, _ = gates["anyOf"]
    del gates["propertyNames"]
    gates["properties"] = {
        row.name: {**_or_none({"$ref": "#/$defs/Gate"}), "description": row.meaning} for row in ROWS
    }
    gates["additionalProperties"] = False


def _matrix(fields: Schema, backends: list[str]) -> Schema:
    """Variants; a variant's ``quantize`` is that of its own backend, or of the recipe's
    (``_rule``)."""
    description = "Its name, if `BACKEND-PRECISION` will not do; the package is called RECIPE-NAME."
    name = {"type": "string", "pattern": SLUG, "description": description}
    variant = {
        key: {k: v for k, v in fields[key].items() if k != "default"} for key in VARIANT_KEYS
    }
    variant["source"] = {
        "type": "object",
        "description": "Another adapter of the same base.",
        "additionalProperties": False,
        "required": ["adapter"],
        "properties": {"adapter": {"$ref": "#/$defs/Adapter"}},
    }
    own = [
        {
            "if": {"properties": {"backend": {"const": backend}}, "required": ["backend"]},
            "then": {"properties": {"quantize": _options(backend)}},
        }
        for backend in backends
    ]
    return {
        "description": "Variants: each is laid on the rest of the recipe, and is one build.",
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_VARIANTS,
        "items": {
            "type": "object",
            "description": "What differs in this build.",
            "additionalProperties": False,
            "properties": variant | {"name": name},
            "allOf": own,
        },
    }


def _options(backend: str) -> Schema:
    """What a ``quantize`` section for ``backend`` may be."""
    words = f"Options of {backend}; `{absent.NONE}`: its usual ones."
    return _or_none({"$ref": f"#/$defs/quantize-{backend}", "description": words})


def _rule(backend: str) -> Schema:
    """Where the recipe's backend is ``backend``, its options, in the recipe and in variants that
    name no other."""
    chosen: Schema = {"properties": {"backend": {"const": backend}}}
    if backend != BACKEND:
        chosen["required"] = ["backend"]
    quantize: Schema = {"properties": {"quantize": _options(backend)}}
    inherits = {"if": {"type": "object", "not": {"required": ["backend"]}}, "then": quantize}
    return {
        "if": chosen,
        "then": {"properties": {**quantize["properties"], "matrix": {"items": inherits}}},
    }


def _say_absence(section: Schema, name: str = "") -> None:
    """Let no property of ``section``, the model ``name``, be null, since a key without a value is
    refused (``empty``), and let it be `none` where ``absent`` takes that for its absence."""
    for key, value in section["properties"].items():
        kept = _not_null(value)
        inner = kept.get("additionalProperties")
        takes_none = name not in absent.CHOICES
        holds_entries = takes_none and kept.get("default") == {} and inner is not None
        if holds_entries and isinstance(inner, dict):
            kept["additionalProperties"] = _or_none(inner)
        optional = holds_entries or key in absent.SECTIONS or value.get("default", key) is None
        section["properties"][key] = _or_none(kept) if takes_none and optional else kept


def _not_null(value: Schema) -> Schema:
    """``value`` without null, in its default neither: editors write defaults out."""
    rest = dict(value)
    if (default := _filled(rest.pop("default", None))) is not None:
        rest["default"] = default
    kept = [choice for choice in rest.pop("anyOf", ()) if choice.get("type") != "null"]
    return {**rest, **kept[0]} if len(kept) == 1 else {**rest, "anyOf": kept} if kept else rest


def _filled(default: Json) -> Json:
    if not isinstance(default, dict):
        return default
    return {key: _filled(inner) for key, inner in default.items() if inner is not None}


def _or_none(value: Schema) -> Schema:
    about: Schema = {key: value[key] for key in ("default", "description") if key in value}
    rest = {key: inner for key, inner in value.items() if key not in about}
    kinds = rest["anyOf"] if set(rest) <= {"anyOf", "title"} else [rest]
    return {"anyOf": [*kinds, {"const": absent.NONE}], **about}


def untitled(value: Json) -> Json:
    """A schema without pydantic's titles, which repeat the keys (a property that is called `title`
    stays)."""
    if isinstance(value, list):
        return [untitled(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: untitled(inner)
        for key, inner in value.items()
        if key != "title" or not isinstance(inner, str)
    }
