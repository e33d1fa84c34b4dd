"""Apple MLX: checkpoint → MLX folder in floating point, once → mlx-lm's quantization, many times.

Both steps are lazy: a tensor is read, changed and written one at a time. MLX also runs on Linux
(its CPU build), so that the very file that ships is evaluated where it is built; speed there says
nothing of a Mac.

Fidelity is computed in fp32 arithmetic over the stored values, as for every runtime here, and once
more in the dtype that ships, in which ``mlx_lm`` computes; text is generated in that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.backends.base import LEARNING, Backend, Finer, Job
from phipipe.backends.mlx.options import ADVICE, Options, bits_of, float_dtype, group_of
from phipipe.backends.mlx.rules import FIXUPS, RULES
from phipipe.backends.mlx.sizes import STORES, stored_bytes, usual_group, weight_bits, widths_of
from phipipe.backends.widths import FLOAT_BITS, Width, widens_layers
from phipipe.models import rotary
from phipipe.steps import Dtype, Json, Params, Step

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Runtime, Tokenizer
    from phipipe.recipe.recipe import Precision, Recipe

TOOLCHAIN = "mlx"
LEARNED = "learned"
CACHE_BITS = {"q8": 8, "q4": 4}
CACHE_GROUPS = (64, 32)  # keys or values that share a scale; mlx-lm's own first
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.mlx.convert:convert",
    "quantize": "phipipe.backends.mlx.quantize:quantize",
}
_SCHEMES: Mapping[Precision, str] = {
    "fp32": "float32",
    "fp16": "float16, bfloat16",
    "int8": "8 bits affine, mxfp8",
    "int4": "2 to 6 bits affine, mxfp4, nvfp4, mixed",
}


def scheme(job: Job[Options]) -> str:
    """Bits, mode and group size."""
    recipe, options = job.recipe, job.options
    if recipe.precision == "fp32":
        return "float32"
    if recipe.precision == "fp16":
        return options.dtype or "16-bit floats of the checkpoint"
    if job.learns:
        learned = f"4-bit affine, groups of {recipe.weights.group_size}, {recipe.weights.learn}"
        return f"{learned} {LEARNED}{', map' if options.map else ''}"
    group = f", groups of {group_of(options)}{', map' if options.map else ''}"
    if options.mode != "affine":
        return options.mode + group
    return (
        f"{bits_of(recipe, options)}-bit affine" if options.mixed == "none" else options.mixed
    ) + group


def steps(job: Job[Options]) -> list[Step]:
    """``convert``, one in 16 bits for all but fp32; for int8 and int4 ``quantize``.

    A large model is not written out in 16 bits first: ``quantize`` then reads the checkpoint
    itself.
    """
    parameters, dtype = job.checkpoint.parameters, _dtype(job)
    convert_step = Step(
        name="convert",
        runs="mlx/convert",
        version=1,
        needs={"source": "source"},
        params={"dtype": dtype, "config_patch": dict(job.patch)},
        toolchain=TOOLCHAIN,
        unquantized=dtype,
        output_bytes=(4 if dtype == "float32" else 2) * parameters,
        memory_bytes=2**30 + parameters,
    )
    if job.recipe.precision.startswith("fp"):
        return [convert_step]
    return [_quantize_step(job)] if job.checkpoint.large else [convert_step, _quantize_step(job)]


def _quantize_step(job: Job[Options]) -> Step:
    options, parameters, direct = job.options, job.checkpoint.parameters, job.checkpoint.large
    bits, group = bits_of(job.recipe, options), group_of(options)
    source = {"dtype": _dtype(job), "config_patch": dict(job.patch)} if direct else {}
    needs = {"source": "source"} if direct else {"model": "convert"}
    size = stored_bytes(job)
    memory = size + 2**29 if direct else 2**30 + parameters
    if job.learns:
        needs, group = {**needs, "weights": "weights"}, job.recipe.weights.group_size
        memory = max(memory, size + 2**30)
    widths = _named(job, bits, group)
    return Step(
        name="quantize",
        runs="mlx/quantize",
        version=1,
        needs=needs,
        params={
            "mode": options.mode,
            "bits": bits,
            "group_size": group,
            **({"widths": widths} if widths else {}),
            **source,
        },
        toolchain=TOOLCHAIN,
        output_bytes=size,
        memory_bytes=memory,
        loaded_bytes=5 * size // 4,  # measured with 3.8 G parameters at 4 bits: 3.2 GiB in all
    )


def _named(job: Job[Options], bits: int, group: int) -> dict[str, Json]:
    """Matrix → [bits, weights that share a scale], of floats [16, 0], as ``config.json`` is to name
    it: with a preset every one, as mlx-lm does, else those that are not as all others are."""
    usual = usual_group(job.options.mode, job.options.group_size)
    found: dict[str, Json] = {}
    for name, stored in widths_of(job).items():
        assert isinstance(stored, Width)  # STORES has no types of its own
        size = 0 if stored.bits == FLOAT_BITS else stored.group_size or usual
        as_others = (stored.bits, size, "affine") == (bits, group, job.options.mode)
        if job.options.mixed != "none" or not as_others:
            found[name] = [stored.bits, size]
    return found


def _dtype(job: Job[Options]) -> Dtype:
    """The dtype of what is not quantized."""
    if job.recipe.precision == "fp32":
        return "float32"
    return job.options.dtype or float_dtype(job.checkpoint.dtype)


def cache_group(head_size: int) -> int | None:
    """Keys or values of a head that share a scale in a cache of few bits; None: MLX has no group
    that divides it."""
    return next((size for size in CACHE_GROUPS if head_size % size == 0), None)


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Load an MLX folder on what this machine's MLX computes with; "metal" insists on the GPU."""
    from phipipe.backends.mlx.session import Session

    return Session(artifact, api)


def open_run(artifact: Path, api: str = "cpu", cache: str = "") -> Runtime:
    """The same, in the arithmetic that the folder stores."""
    from phipipe.backends.mlx.session import Session

    return Session(artifact, api, as_run=True, cache_bits=CACHE_BITS.get(cache))


def knob(recipe: Recipe, api: str) -> str:
    """Activations, and whatever is computed of them, have the dtype of the folder's scales."""
    return "" if recipe.precision == "fp32" else "16-bit arithmetic"


def tokenizer(artifact: Path) -> Tokenizer:
    """The tokenizer as mlx-lm reads it, in a limited child."""
    from phipipe.sandbox.tokenizer import open_in_child

    imports = ["mlx_lm.utils", "transformers:AutoTokenizer"]
    return open_in_child("phipipe.backends.mlx.vocabulary:opened", artifact, imports)


def codec(params: Params) -> Codec:
    """What MLX rounds rows of a weight to."""
    from phipipe.backends.mlx.codecs import codec

    return codec(params)


FACE = Backend(
    title="Apple MLX (mlx-lm)",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions={"metal": _SCHEMES},
    systems=frozenset({"macos", "ios"}),
    host_apis=frozenset({"metal"}),
    cache_bytes={"metal": 2},
    files=("config.json", "*.safetensors", "*.safetensors.index.json"),
    quantized_by=frozenset(),
    steps=steps,
    scheme=scheme,
    rules=RULES,
    fixups=FIXUPS,
    is_uniform=lambda o: o.mixed == "none" and (o.bits or 4) <= 4 and not widens_layers(o.map),
    stores=STORES,
    weight_bits=weight_bits,
    codec=codec,
    wider="set `quantize.mixed: mixed_4_6`",
    apart={"mixed": "mixed_4_6"},
    finer=(
        LEARNING,
        Finer(options={"mixed": "mixed_4_6"}, told="mixed_4_6", unless=LEARNED),
        Finer(options={"bits": 6}, told="6-bit", unless=LEARNED),
    ),
    unable={"gemma3_text": "mlx-lm rounds the scale of its embedding to 16 bits"},
    open=open,
    knob=knob,
    open_run=open_run,
    caches={name: f"{bits} bits" for name, bits in CACHE_BITS.items()},
    cache_group=cache_group,
    tokenizer=tokenizer,
    rotary=frozenset(
        {
            *("linear", "llama3", "longrope", "yarn", "yarn.beta_fast", "yarn.beta_slow"),
            *("yarn.mscale", "yarn.mscale_all_dim", rotary.ELSEWHERE),
        }
    ),
    suits="Apple's GPUs. Choose it for Macs and iPhones, where it is the native library.",
    advice=ADVICE,
    rank=4,
    colour=4,
)
