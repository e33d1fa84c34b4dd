"""Quantization: an unquantized ONNX folder to one with its weights at 8 or 4 bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from phipipe.algorithms import olive_packed
from phipipe.algorithms.olive_packed import Packed
from phipipe.backends.onnxruntime import graph, rounding
from phipipe.backends.onnxruntime.layout import CONFIG, DATA, LM_HEAD, MODEL
from phipipe.backends.onnxruntime.options import Options
from phipipe.backends.onnxruntime.schemes import Linear, Scheme, schemes_of
from phipipe.backends.onnxruntime.verify import verify
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, with its weights at ``params["bits"]``
    bits.

    With "gptq" the integers and scales are those of ``inputs["rounded"]``, a checkpoint in Olive's
    layout. The graph is verified from disk before the step counts as done.

    Raises:
        RecipeError: a pattern of ``exclude`` matches no node.
        StepFailed: onnxruntime's quantizer did something else than asked.
    """
    source, checkpoint = inputs["model"], inputs.get("source")
    options = Options.model_validate({k: v for k, v in params.items() if k != "bits"})
    model = graph.load(source)
    wanted = graph.linears(model)
    decoder = json.loads((source / CONFIG).read_text("utf-8"))["model"]["decoder"]
    schemes = schemes_of(wanted, options, params["bits"], decoder["num_hidden_layers"])
    rounded: dict[str, Callable[[], Packed]] = {}
    if options.algorithm == "gptq":
        schemes, rounded = _learned(inputs["rounded"], wanted, schemes)
    embedding = _embedding(graph.is_tied(model), wanted, schemes, options)
    rounding.write_rounded(source, out, schemes, embedding, rounded, checkpoint)
    copy_beside(source, out, leave=lambda name: name in (MODEL, DATA))
    verify(out, wanted, schemes, embedding)


def _learned(
    folder: Path, wanted: Sequence[Linear], schemes: Mapping[str, Scheme]
) -> tuple[dict[str, Scheme], dict[str, Callable[[], Packed]]]:
    """Node name → its scheme with the bits that Olive rounded it to, and what gives its integers
    and scales."""
    learned = olive_packed.Rounded(folder)
    places = olive_packed.places(learned, {linear.name: linear.n for linear in wanted})
    bits = {name: learned.bits(places[name].linear) for name in schemes}
    rounded: dict[str, Callable[[], Packed]] = {
        name: partial(learned.at, places[name]) for name in schemes
    }
    return {name: replace(one, bits=bits[name]) for name, one in schemes.items()}, rounded


def _embedding(
    tied: bool, wanted: Sequence[Linear], schemes: Mapping[str, Scheme], options: Options
) -> Scheme | None:
    """How the token embedding is stored; None is fp32."""
    head = next(linear for linear in wanted if linear.name == LM_HEAD)
    if tied:  # rows that end within a block cannot be looked up without padding
        shareable = options.embeddings != "float" and head.k % options.block_size == 0
        return schemes.get(LM_HEAD) if shareable else None
    if options.embeddings != "quantized":
        return None
    return Scheme(
        bits=4,
        block_size=options.block_size,
        symmetric=options.symmetric,
        accuracy_level=0,
        algorithm="default",
    )
