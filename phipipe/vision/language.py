"""The language model of a model that sees, cut out of its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from phipipe.models import checkpoints, tensor_places
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params
from phipipe.vision.kinds import KINDS, Kind, language_config

WEIGHTS = "model.safetensors"


def cut(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): the language model of ``inputs["original"]``, bytes as they are."""
    original = inputs["original"]
    places = tensor_places.places(original)
    others = cut_files(original, out).others
    tensor_places.write(
        out / WEIGHTS,
        original,
        {name: p for name, p in places.items() if not name.startswith(others)},
    )


def cut_files(original: Path, out: Path) -> Kind:
    """What belongs to the language model of the checkpoint ``original``, but for weights; returns
    its kind."""
    copy_beside(original, out, checkpoints.loose_files(original))
    config = json.loads((original / "config.json").read_text("utf-8"))
    (out / "config.json").write_text(json.dumps(language_config(config), indent=2) + "\n", "utf-8")
    return KINDS[config["architectures"][0]]
