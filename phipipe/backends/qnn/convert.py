"""Conversion: a checkpoint to static graphs in fp32, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import onnx

from phipipe import progress
from phipipe.backends.qnn import graph
from phipipe.backends.qnn.pipeline import describe
from phipipe.backends.qnn.shape import Shape, shape_of
from phipipe.backends.qnn.stages import EMBEDDING, data_of, name_of, stages
from phipipe.backends.qnn.weights import DataFile, Weights
from phipipe.models import checkpoints, tokenizer_files
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Json, Params


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to static graphs in fp32, the layers in
    ``params["parts"]`` parts.

    Writes embedding.onnx, decoder_0_prompt.onnx, decoder_0_token.onnx (and so on for each part),
    head_prompt.onnx, head_token.onnx, a .data file for each part, static.json, genai_config.json
    and the tokenizer's files.
    """
    source = inputs["source"]
    config = json.loads((source / "config.json").read_text("utf-8")) | params["config_patch"]
    lengths = {"prompt": params["prompt_length"], "token": 1}
    shapes = {
        kind: shape_of(config, length, params["context_length"]) for kind, length in lengths.items()
    }
    facts = _facts(shapes["prompt"], config, params["parts"], _ends(source, config))
    _write_graphs(out, shapes, Weights(source), facts)
    names = checkpoints.loose_files(source)
    copy_beside(source, out, names, leave=lambda name: name == "config.json")
    describe(out, facts)


def _ends(source: Path, config: Mapping[str, Json]) -> list[int]:
    """Ids that end a text: the generation config's, else the config's."""
    generation = source / "generation_config.json"
    settings = json.loads(generation.read_text("utf-8")) if generation.is_file() else {}
    return tokenizer_files.end_ids(settings.get("eos_token_id") or config["eos_token_id"])


def _facts(
    shape: Shape, config: Mapping[str, Json], parts: int, ends: list[int]
) -> dict[str, Json]:
    """What ``static.json`` says of graphs that were not compiled."""
    return {
        "layers": shape.layers,
        "hidden": shape.hidden,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_size": shape.head_size,
        "prompt_length": shape.length,
        "context_length": shape.context,
        "parts": parts,
        "ends": ends,
        "caches": "float32",
        "soc": None,
        "shared": False,
        "begin": config.get("bos_token_id"),
        "pad": config.get("pad_token_id"),
        "vocabulary": config["vocab_size"],
    }


def _write_graphs(
    out: Path, shapes: Mapping[str, Shape], weights: Weights, facts: Mapping[str, Json]
) -> None:
    """The float graphs of every stage, for each length of ``shapes``, and the embedding; tensor by
    tensor."""
    for stage, layers in progress.each(list(stages(facts).items()), "parts"):
        with DataFile(out / data_of(stage)) as data:
            for kind, shape in shapes.items():
                model = (
                    graph.decoder(shape, weights, layers, data)
                    if layers
                    else graph.head(shape, weights, data)
                )
                onnx.save(model, str(out / name_of(stage, kind)))
    with DataFile(out / data_of("embedding")) as data:
        onnx.save(graph.embedding(weights, data), str(out / EMBEDDING))
