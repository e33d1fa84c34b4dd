"""The recipe that travels with a package: how to make it again, anywhere."""

from __future__ import annotations

import json
import re

from phipipe.evaluate import papers
from phipipe.recipe import written
from phipipe.steps import Json, Params

NAME = papers.RECIPE
RECIPE_ORDER = (
    "name", "source", "device", "unit", "backend", "precision", "context",
    "quantize", "evaluate", "measure", "package",
)  # fmt: skip


def portable(params: Params) -> dict[str, Json]:
    """The recipe without paths of this machine: of a folder or file only its name is left."""
    recipe: dict[str, Json] = json.loads(json.dumps(params["recipe"]))
    if "path" in recipe["source"]:
        recipe["source"]["path"] = params["source"]["name"]
    for part in _parts(recipe):
        recipe["source"][part]["path"] = _basename(recipe["source"][part]["path"])
    for section in ("evaluate", "calibrate"):
        text = recipe.get(section, {}).get("text", {})
        if "file" in text:
            text["file"] = _basename(text["file"])
    if "file" in _prompts(recipe):
        recipe["evaluate"]["generate"]["prompts"]["file"] = _basename(_prompts(recipe)["file"])
    recipe["device"] = _basename(recipe["device"])
    return {key: recipe[key] for key in [*RECIPE_ORDER, *sorted(recipe)] if key in recipe}


def _prompts(recipe: dict[str, Json]) -> dict[str, Json]:
    """The prompts that are asked; empty where nothing is."""
    prompts: dict[str, Json] = recipe.get("evaluate", {}).get("generate", {}).get("prompts", {})
    return prompts


def _parts(recipe: dict[str, Json]) -> list[str]:
    """Parts of the source that are local folders."""
    return [part for part in ("base", "adapter") if "path" in recipe["source"].get(part, {})]


def _basename(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def text(params: Params) -> str:
    """``recipe.yaml``: what to run to get this package again."""
    recipe = portable(params)
    lines = [
        "# The recipe of this package, every default written out.",
        f"#   phipipe run {NAME}",
    ]
    if "path" in recipe["source"]:
        lines.append("# The checkpoint does not travel with it: add --set 'source={path: FOLDER}'.")
    lines += [
        f"# The {part} does not travel with it: add --set 'source.{part}={{path: FOLDER}}'."
        for part in _parts(recipe)
    ]
    if "file" in recipe.get("evaluate", {}).get("text", {}):
        lines.append("# Neither does the evaluation text: add --set 'evaluate.text={file: FILE}'.")
    if "file" in _prompts(recipe):
        lines.append(
            "# Neither do the prompts: add --set 'evaluate.generate.prompts={file: FILE}'."
        )
    return "\n".join(lines) + f"\n{written.text(recipe)}"
