"""The JSON schemas that phipipe publishes: of recipes, and of what each command prints with
``--json``.

They lie in ``schemas/``: ``recipe.schema.json``, and ``output/COMMAND.schema.json``, each complete
in itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from phipipe import backends
from phipipe.board import candidates, entry
from phipipe.cli import explain
from phipipe.errors import RecipeError
from phipipe.output import (
    apps,
    batch,
    diff,
    documents,
    lists,
    planned,
    profiled,
    published,
    recipes,
    tuned,
)
from phipipe.recipe import schema
from phipipe.steps import Json
from phipipe.suggestions import near

RECIPE = "recipe"


@dataclass(frozen=True, kw_only=True)
class Board:
    """The content of ``board.json``."""

    type: str
    format: int
    phipipe: str
    entries: list[entry.Entry]
    picks: list[candidates.Answer]


# Command → its document; each may print ``output.Failure`` instead.
DOCUMENTS: Mapping[str, Json] = {
    "run": list[documents.Built],
    "plan": list[planned.Planned],
    "tune": list[tuned.Tuned],
    "diff": diff.Difference,
    "validate": list[documents.Validated],
    "eval": documents.Built,
    "measure": Board,
    "compare": Board,
    "pull": published.Pulled,
    "push": published.Pushed,
    "rebuild": documents.Rebuilt,
    "serve": documents.Served,
    "verify": documents.Verified,
    "sign": documents.Signed,
    "apps": list[apps.App],
    "export": list[apps.Export],
    "init": recipes.Started,
    "recipes": list[lists.ShippedRecipe],
    "recipes-ls": list[lists.ShippedRecipe],
    "recipes-show": lists.ShippedRecipeDetails,
    "recipes-copy": lists.CopiedRecipe,
    "devices": list[lists.Device],
    "devices-show": lists.DeviceDetails,
    "backends": list[lists.Backend],
    "backends-show": lists.BackendDetails,
    "batch": batch.Batch | batch.Foreseen,
    "schedule-export": batch.Exported,
    "schema": list[lists.SchemaFile],
    "pin": list[recipes.Pinned],
    "toolchain-ls": list[lists.Toolchain],
    "toolchain-install": list[lists.Toolchain],
    "toolchain-build": lists.BuiltWheel,
    "toolchain-path": lists.Toolchain,
    "cache-ls": list[lists.Stored],
    "cache-verify": lists.CacheVerified,
    "cache-gc": lists.Collected,
    "runs-ls": list[lists.Run],
    "runs-show": lists.RunDetails | profiled.Profile,
    "runs-logs": list[dict[str, Json]],
    "config-show": list[lists.Setting],
    "config-path": list[lists.SettingsFile],
    "explain": list[explain.Explanation] | explain.Explanation,
    "docs": list[lists.Topic] | lists.Page,
    "doctor": lists.Doctor,
}


def text(name: str) -> str:
    """The schema ``name``: "recipe", or a command, as the text of its file.

    Raises:
        RecipeError: there is no such schema.
    """
    if name == RECIPE:
        return schema.dump({name: backends.load(name).options for name in backends.names()})
    return _dump(of_command(name))


def of_command(name: str) -> dict[str, Json]:
    """JSON schema (draft 2020-12) of what the command ``name`` prints with ``--json``.

    Raises:
        RecipeError: there is no such command, or it prints no JSON.
    """
    command = "-".join(name.split())
    if command not in DOCUMENTS:
        known = (RECIPE, *DOCUMENTS)
        raise RecipeError(
            f"there is no schema `{name}`{near(name, known)}", hint=f"schemas: {', '.join(known)}"
        )
    own = TypeAdapter(DOCUMENTS[command] | documents.Failure).json_schema(mode="serialization")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"phipipe {name} --json",
    }
    return {**head, **_closed(schema.untitled(own))}


def files() -> dict[Path, str]:
    """Every schema, by its path in ``schemas/``."""
    recipe = {Path(f"{RECIPE}.schema.json"): text(RECIPE)}
    return recipe | {Path("output") / f"{name}.schema.json": text(name) for name in DOCUMENTS}


def bundle() -> str:
    """All schemas in one JSON document, by name."""
    return _dump({name: json.loads(text(name)) for name in (RECIPE, *DOCUMENTS)})


def _dump(value: Json) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _closed(value: Json) -> Json:
    """The schema with objects that have the fields listed, no other; and those without a list as
    they are."""
    if isinstance(value, list):
        return [_closed(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    closed = {key: _closed(inner) for key, inner in value.items()}
    if value.get("type") == "object" and isinstance(value.get("properties"), dict):
        closed["additionalProperties"] = False
    return closed
