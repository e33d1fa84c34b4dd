"""LiteRT (TensorFlow Lite): checkpoint → float ``.tflite``, once → ai-edge-quantizer, many times →
LiteRT-LM bundle.

Weights are what is quantized; activations stay in fp32 in the file. With ``dynamic`` weights
LiteRT's kernels round each row of activations to 8 bits while they run: on phones too, so fidelity
includes that. The file has two signatures, ``prefill_N`` and ``decode``, and a cache of fixed
length; the bundle holds it with tokenizer and chat template, as LiteRT-LM wants it, and is opened
here by reading the very same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.backends.base import LEARNING, Backend, Finer, Job
from phipipe.backends.litert.layout import BUNDLE, MODEL
from phipipe.backends.litert.options import ADVICE, BITS, Options, context_of, group_of, prefill_of
from phipipe.backends.litert.rules import FIXUPS, RULES
from phipipe.backends.litert.sizes import STORES, stored_bytes, weight_bits, widths_of
from phipipe.backends.widths import widens_layers
from phipipe.steps import Json, Params, Step

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Runtime, Tokenizer
    from phipipe.recipe.recipe import Precision

TOOLCHAIN = "litert"
LEARNED = "learned"
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.litert.convert:convert",
    "quantize": "phipipe.backends.litert.quantize:quantize",
    "bundle": "phipipe.backends.litert.bundle:bundle",
}
_SCHEMES: Mapping[Precision, str] = {
    "fp32": "float32",
    "int8": "int8 per row, dynamic or weight only",
    "int4": "int4 in groups or per row, dynamic or weight only",
}


def steps(job: Job[Options]) -> list[Step]:
    """``convert`` in fp32, one for all precisions; for int8 and int4 ``quantize``; ``bundle`` if it
    is wanted."""
    chain = [_convert_step(job)]
    if job.recipe.precision in BITS:
        chain.append(_quantize_step(job))
    if job.options.format == "litertlm":
        chain.append(_bundle_step(job, chain[-1]))
    return chain


def _convert_step(job: Job[Options]) -> Step:
    options, checkpoint = job.options, job.checkpoint
    return Step(
        name="convert",
        runs="litert/convert",
        version=1,
        needs={"source": "source"},
        params={
            "prefill_length": prefill_of(options, checkpoint),
            "context_length": context_of(options, checkpoint),
            "config_patch": dict(job.patch),
        },
        toolchain=TOOLCHAIN,
        unquantized="float32",
        output_bytes=4 * checkpoint.parameters,
        memory_bytes=5 * 2**28 + 13 * checkpoint.parameters,
    )


def _quantize_step(job: Job[Options]) -> Step:
    needs: dict[str, str] = {"model": "convert"}
    params: dict[str, Json] = {
        "bits": BITS[job.recipe.precision],
        "group_size": group_of(job.recipe, job.options),
        "scheme": job.options.scheme,
    }
    if job.widths:
        needs["source"] = "source"
        params["widths"] = {name: list(width) for name, width in widths_of(job).items()}
    if job.learns:
        needs["weights"] = "weights"
    return Step(
        name="quantize",
        runs="litert/quantize",
        version=2,
        needs=needs,
        params=params,
        toolchain=TOOLCHAIN,
        output_bytes=stored_bytes(job),
        memory_bytes=2**30 + 2 * job.checkpoint.parameters,
    )


def _bundle_step(job: Job[Options], before: Step) -> Step:
    return Step(
        name="bundle",
        runs="litert/bundle",
        version=2,
        needs={"model": before.name},
        params={"context_length": context_of(job.options, job.checkpoint)},
        toolchain=TOOLCHAIN,
        output_bytes=before.output_bytes,
        memory_bytes=2**30 + before.output_bytes,
    )


def scheme(job: Job[Options]) -> str:
    """Type of the weights, what shares a scale, and how they are used."""
    recipe, options = job.recipe, job.options
    if recipe.precision not in BITS:
        return "float32"
    group = recipe.weights.group_size if job.learns else group_of(recipe, options)
    shared = "per row" if group < 0 else f"in groups of {group}"
    words = [f"{recipe.precision} {shared}", options.scheme.replace("_", " ")]
    words += [f"{recipe.weights.learn} {LEARNED}"] if job.learns else []
    words += ["map"] if options.map else []
    return ", ".join(words)


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Load a ``.tflite``, or the one inside a bundle, on the CPU."""
    from phipipe.backends.litert.session import Session

    return Session(artifact)


def tokenizer(artifact: Path) -> Tokenizer:
    """The artifact's tokenizer as transformers reads it."""
    from phipipe.models.tokenizer import of_folder

    return of_folder(artifact)


def codec(params: Params) -> Codec:
    """What ai-edge-quantizer rounds rows of a weight to."""
    from phipipe.backends.litert.codecs import codec

    return codec(params)


FACE = Backend(
    title="LiteRT",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions={"cpu": _SCHEMES},
    systems=frozenset({"linux", "windows", "macos", "android", "ios"}),
    cache_bytes={"cpu": 4},
    files=("config.json", MODEL, BUNDLE),
    steps=steps,
    scheme=scheme,
    context_length=lambda job: context_of(job.options, job.checkpoint),
    rules=RULES,
    fixups=FIXUPS,
    by_rows=lambda job: not job.learns and group_of(job.recipe, job.options) == -1,
    is_uniform=lambda options: not widens_layers(options.map),
    stores=STORES,
    weight_bits=weight_bits,
    codec=codec,
    wider="set `quantize.map: {layers.*.mlp.down_proj: {bits: 8}}`",
    finer=(
        replace(LEARNING, unless="weight only"),
        Finer(options={"group_size": 32}, told="groups of 32", unless="weight only"),
    ),
    open=open,
    tokenizer=tokenizer,
    rotary=frozenset({"linear", "llama3", "longrope", "yarn", "yarn.beta_fast", "yarn.beta_slow"}),
    suits="Google's runtime for Android, on the CPU. Choose it for apps that use LiteRT-LM.",
    advice=ADVICE,
    library="litert-lm",
    hub_tags=("tflite",),
    rank=6,
    colour=5,
)
