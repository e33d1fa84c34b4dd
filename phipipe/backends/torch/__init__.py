"""PyTorch: the baseline every runtime is compared with, and a checkpoint for transformers as
output.

fp32 and fp16 are plain casts. int8 and int4 are auto-round's own format: safetensors in which each
linear of the decoder layers is packed integers with a scale per group, everything else the source's
own tensors and files.

Quantized artifacts are scored in fp32 on the stored values, like all others of this backend.
auto-round's layers for the CPU would compute in 16 bits (positions too), and unpack every weight
anew for each token: 40 s with 4 G weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.backends import widths
from phipipe.backends.base import LEARNING, Backend, Codec, Finer, Job, Runtime, Tokenizer
from phipipe.backends.torch.advice import ADVICE
from phipipe.backends.torch.options import BITS, STORES, Options
from phipipe.backends.torch.rules import RULES
from phipipe.backends.torch.sizes import packed_bytes, weight_bits
from phipipe.backends.widths import Stored, Width
from phipipe.models import rotary
from phipipe.models.tokenizer import of_folder
from phipipe.recipe.learned import ITERATIONS, groups_words
from phipipe.steps import Dtype, Json, Params, Step

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Precision, Recipe

TOOLCHAIN = "torch"
STEPS: Mapping[str, str] = {
    "cast": "phipipe.backends.torch.convert:cast",
    "quantize": "phipipe.backends.torch.quantize:quantize",
}
_DTYPES: Mapping[Precision, Dtype] = {"fp32": "float32", "fp16": "float16"}
_SCHEMES: Mapping[Precision, str] = {
    **_DTYPES,
    "int8": "auto-round, 8 bits",
    "int4": "auto-round, 4 bits",
}


def steps(job: Job[Options]) -> list[Step]:
    """One step, straight from the checkpoint: ``convert`` (a cast), or ``quantize``."""
    recipe, checkpoint = job.recipe, job.checkpoint
    if recipe.precision in BITS:
        return [_quantize_step(job)]
    size = checkpoint.parameters * (4 if recipe.precision == "fp32" else 2)
    step = Step(
        name="convert",
        runs="torch/cast",
        version=2,
        needs={"source": "source"},
        params={"dtype": _DTYPES[recipe.precision]},
        unquantized=_DTYPES[recipe.precision],
        toolchain=TOOLCHAIN,
        output_bytes=size,
        memory_bytes=size,
    )
    return [step]


def _quantize_step(job: Job[Options]) -> Step:
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    bits, learns, mapped = BITS[recipe.precision], options.algorithm == "signround", _mapped(job)
    params: dict[str, Json] = {
        "bits": bits,
        **options.model_dump(mode="json", exclude={"iterations", "map"}),
    }
    size = packed_bytes(bits, options, checkpoint, mapped, job.learns)
    needs, memory = {"source": "source"}, 4 * checkpoint.parameters + 2**30  # all weights in fp32
    if mapped:
        params["widths"] = widths.to_params(mapped)
    if job.learns:
        needs["weights"], memory = "weights", size + 2**30
        params["group_size"] = recipe.weights.group_size
    elif learns:
        params["iterations"] = options.iterations or ITERATIONS
        needs["calibration"] = "calibration"
        # a layer's inputs and both its outputs for all tokens, and one layer's activations for a
        # batch
        memory += 12 * recipe.calibrate.tokens * checkpoint.hidden_size + 2**30
    return Step(
        name="quantize",
        runs="torch/quantize",
        version=1,
        needs=needs,
        params=params,
        toolchain=TOOLCHAIN,
        output_bytes=size,
        memory_bytes=memory,
    )


def _mapped(job: Job[Options]) -> dict[str, Stored]:
    """The widths that the map gives, groups filled in."""
    size = job.options.group_size
    return {
        name: Width(bits=one.bits, group_size=one.group_size or size)
        for name, one in job.widths.items()
        if isinstance(one, Width)
    }


def scheme(job: Job[Options]) -> str:
    """The dtype; or the format, its bits and groups."""
    recipe, options = job.recipe, job.options
    if recipe.precision not in BITS:
        return _DTYPES[recipe.precision]
    kind = "symmetric" if options.symmetric else "asymmetric"
    size = recipe.weights.group_size if job.learns else options.group_size
    groups = groups_words(size)
    written = "auto-round's layout" if job.learns else "auto-round"
    told = ", precision map" if options.map else ""
    return f"{written}, {BITS[recipe.precision]} bits {kind}, {groups}{told}"


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Load a checkpoint in fp32 on the CPU, or on an NVIDIA GPU."""
    from phipipe.backends.torch.session import Session

    return Session(artifact, api)


def open_run(artifact: Path, api: str = "cpu", cache: str = "") -> Runtime:
    """The same in the dtype that transformers takes by itself."""
    from phipipe.backends.torch.session import Session

    return Session(artifact, api, as_run=True)


def knob(recipe: Recipe, api: str) -> str:
    """A checkpoint's dtype is that of the arithmetic; auto-round's layers widen to 16 bits."""
    return "" if recipe.precision == "fp32" else "16-bit arithmetic"


def tokenizer(artifact: Path) -> Tokenizer:
    """The checkpoint's tokenizer as transformers reads it."""
    return of_folder(artifact)


def codec(params: Params) -> Codec:
    """What auto-round rounds rows of a weight to."""
    from phipipe.backends.torch.codecs import codec

    return codec(params)


FACE = Backend(
    title="PyTorch checkpoint (transformers)",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions=dict.fromkeys(("cpu", "cuda", "metal"), _SCHEMES),
    systems=frozenset({"linux", "windows", "macos"}),
    host_apis=frozenset({"cpu", "cuda"}),
    toolchains={"cpu": TOOLCHAIN, "cuda": TOOLCHAIN},
    cache_bytes={"cpu": 4, "cuda": 2, "metal": 2},
    files=("config.json", "*.safetensors", "*.safetensors.index.json"),
    quantized_by=frozenset({"auto-round"}),
    reads_resaved=True,
    steps=steps,
    scheme=scheme,
    rules=RULES,
    finer=(
        LEARNING,
        Finer(
            options={"algorithm": "signround", "group_size": 32},
            told="groups of 32",
            unless="layout",  # learned before
        ),
    ),
    is_uniform=lambda options: not widths.widens_layers(options.map),
    stores=STORES,
    weight_bits=lambda job, name, stored, columns: weight_bits(
        name, stored, columns, job.options, job.checkpoint, job.learns
    ),
    codec=codec,
    open=open,
    knob=knob,
    open_run=open_run,
    tokenizer=tokenizer,
    rotary=rotary.STATIC,
    suits="A checkpoint for transformers. Choose it to compare, or where a server with "
    "PyTorch is the target.",
    advice=ADVICE,
    library="transformers",
    hub_tags=("pytorch",),
    rank=7,
    colour=1,
)
