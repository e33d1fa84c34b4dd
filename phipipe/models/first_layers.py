"""The first layers of a checkpoint, as a checkpoint: what a large model's conversion is proved on.

An unquantized copy of a large model is more than many machines can hold, and scoring it takes
longer than all else. Its first layers with its embedding and head go through the same converter,
and hold everything that converters get wrong: attention, positions, norms, tied weights, the
tokenizer. What only the others could show (a layer mixed up with another) shows in the divergence
of the quantized whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from phipipe.models import checkpoints, tensor_places
from phipipe.models.checkpoint import Checkpoint
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params, Step

LAYERS = 2
WEIGHTS = "model.safetensors"
_LAYER = re.compile(r"\.(?:layers|h)\.(\d+)\.")


def of(checkpoint: Checkpoint, layers: int = LAYERS) -> Checkpoint:
    """What ``cut`` makes of ``checkpoint``; parameters and bytes are estimates."""
    embeddings = checkpoint.vocab_size * checkpoint.hidden_size * (1 if checkpoint.tied else 2)
    share = (
        embeddings + (checkpoint.parameters - embeddings) * layers / checkpoint.layers
    ) / checkpoint.parameters
    parameters = int(checkpoint.parameters * share)
    weight_bytes = round(parameters * checkpoint.weight_bytes / checkpoint.parameters)
    return replace(
        checkpoint, layers=layers, cut=True, parameters=parameters, weight_bytes=weight_bytes
    )


def step(checkpoint: Checkpoint, layers: int = LAYERS) -> Step:
    """The step that cuts ``checkpoint``."""
    return Step(
        name="slice",
        runs="models/cut_layers",
        version=1,
        needs={"source": "source"},
        params={"layers": layers},
        output_bytes=of(checkpoint, layers).weight_bytes,
    )


def cut(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): ``inputs["source"]`` with its first ``params["layers"]`` layers alone, bytes as
    they are."""
    source, layers = inputs["source"], int(params["layers"])
    places = tensor_places.places(source)
    tensor_places.write(
        out / WEIGHTS,
        source,
        {name: place for name, place in places.items() if _layer(name) < layers},
    )
    copy_beside(source, out, checkpoints.loose_files(source))
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["num_hidden_layers"] = layers
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:layers]
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _layer(name: str) -> int:
    """Number of the layer that the tensor ``name`` belongs to; -1 outside of them."""
    match = _LAYER.search(name)
    return int(match[1]) if match else -1
