"""Quantization: an unquantized ONNX folder to one with its weights at 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from phipipe.algorithms import olive_packed
from phipipe.algorithms.lattice import Lattice
from phipipe.backends import widths
from phipipe.backends.onnxruntime import exact, graph, rounding
from phipipe.backends.onnxruntime.layout import DATA, LM_HEAD, LOOKUP, MODEL
from phipipe.backends.onnxruntime.options import Options
from phipipe.backends.onnxruntime.schemes import (
    Linear,
    Scheme,
    mapped_scheme,
    schemes_of,
    usual_scheme,
)
from phipipe.backends.onnxruntime.verify import verify
from phipipe.backends.widths import FLOAT_BITS, Stored, Width
from phipipe.errors import StepFailed
from phipipe.models import linears
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, with its weights at ``params["bits"]``
    bits.

    With "gptq" the integers and scales are those of ``inputs["rounded"]``, a checkpoint in Olive's
    layout; where ``inputs["weights"]`` is there, those of that lattice. ``params["widths"]``
    (none) are what ``schemes.widths_of`` says. The graph is verified from disk before the step
    counts as done.

    Raises:
        RecipeError: a pattern of ``exclude`` matches no node.
        StepFailed: onnxruntime's quantizer did something else than asked.
    """
    source, checkpoint = inputs["model"], inputs.get("source")
    own = {k: v for k, v in params.items() if k not in ("bits", "widths")}
    options = Options.model_validate(own)
    mapped = widths.from_params(params.get("widths", {}))
    model = graph.load(source)
    wanted = graph.linears(model)
    schemes = schemes_of(wanted, options, params["bits"], mapped)
    rounded: exact.Rounded = {}
    if options.algorithm == "gptq":
        schemes, rounded = _learned(inputs["rounded"], wanted, schemes)
    tied = graph.is_tied(model)
    embedding = _embedding(tied, wanted, schemes, options, mapped.get(linears.EMBEDDING))
    stored = Lattice(inputs["weights"]) if "weights" in inputs else None
    sizes = {linear.name: linear.n for linear in wanted if linear.name in schemes}
    if stored:
        looked_up = {LOOKUP: embedding} if embedding and not tied else {}
        sizes |= {name: stored.shape(linears.EMBEDDING)[0] for name in looked_up}
        rounded = exact.codes_of(stored, schemes | looked_up, sizes)
    rounding.write_rounded(
        source, out, schemes, embedding, rounded, checkpoint, near=stored is None
    )
    copy_beside(source, out, leave=lambda name: name in (MODEL, DATA))
    verify(out, wanted, schemes, embedding)
    if stored:
        exact.check(out, stored, sizes)


def _learned(
    folder: Path, wanted: Sequence[Linear], schemes: Mapping[str, Scheme]
) -> tuple[dict[str, Scheme], exact.Rounded]:
    """Node name → its scheme with the bits that Olive rounded it to, and what gives its integers
    and scales."""
    learned = olive_packed.Rounded(folder)
    places = olive_packed.places(learned, {linear.name: linear.n for linear in wanted})
    bits = {name: learned.bits(places[name].linear) for name in schemes}
    rounded: exact.Rounded = {name: partial(learned.at, places[name]) for name in schemes}
    return {name: replace(one, bits=bits[name]) for name, one in schemes.items()}, rounded


def _embedding(
    tied: bool,
    wanted: Sequence[Linear],
    schemes: Mapping[str, Scheme],
    options: Options,
    mapped: Stored | None,
) -> Scheme | None:
    """How the token embedding is stored; None is in floats. ``mapped``: what the map says of it."""
    head = next(linear for linear in wanted if linear.name == LM_HEAD)
    if tied:  # rows that end within a block cannot be looked up without padding
        shared = schemes.get(LM_HEAD)
        shareable = shared and options.embeddings != "float" and head.k % shared.block_size == 0
        return shared if shareable else None
    usual = replace(usual_scheme(options, 4), accuracy_level=0, algorithm="default")
    if not isinstance(mapped, Width):
        return usual if options.embeddings == "quantized" else None
    if mapped.bits == FLOAT_BITS:
        return None
    scheme = mapped_scheme(usual, mapped)
    if head.k % scheme.block_size:
        raise StepFailed(
            f"the embedding's rows of {head.k} weights end within a block of {scheme.block_size}",
            hint="give it another `group_size` in `quantize.map`",
        )
    return scheme
