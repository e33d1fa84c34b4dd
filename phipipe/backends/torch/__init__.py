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

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from phipipe.backends import group_rules
from phipipe.backends.base import Backend, Finer, Job, Runtime, Tokenizer
from phipipe.backends.rules import Rule
from phipipe.backends.torch.advice import ADVICE
from phipipe.models import rotary
from phipipe.models.tokenizer import of_folder
from phipipe.steps import Json, Step

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Precision

TOOLCHAIN = "torch"
STEPS: Mapping[str, str] = {
    "cast": "phipipe.backends.torch.convert:cast",
    "quantize": "phipipe.backends.torch.quantize:quantize",
}
_DTYPES: Mapping[Precision, str] = {"fp32": "float32", "fp16": "float16"}
BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
_SCHEMES: Mapping[Precision, str] = {
    **_DTYPES,
    "int8": "auto-round, 8 bits",
    "int4": "auto-round, 4 bits",
}
ITERATIONS = 200  # auto-round's own default


class Options(BaseModel):
    """How int8 and int4 weights are rounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Literal["rtn", "signround"] = Field(
        default="rtn",
        description="rtn: round to nearest, without data. signround: learns the rounding and "
        "the ranges layer by layer "
        "from the calibration text (auto-round's own method); more accurate, same size, much "
        "slower.",
    )
    group_size: Literal[32, 64, 128, -1] = Field(
        default=128,
        description="Weights that share one scale; -1: a whole row. Smaller is more accurate "
        "and larger on disk.",
    )
    symmetric: bool = Field(
        default=True,
        strict=True,
        description="Rounding around zero. Off (int4 only): a zero point per group, for skewed "
        "weights.",
    )
    iterations: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        strict=True,
        description=f"signround: steps of learning for each layer; {ITERATIONS} if not set.",
    )


RULES: tuple[Rule, ...] = (
    Rule(
        id="T01",
        level="warning",
        when=lambda r, o, c: r.precision not in BITS and bool(o.model_fields_set),
        message="`quantize` is set, but {recipe.precision} quantizes nothing",
        hint="take `quantize` out, or choose int8 or int4",
    ),
    Rule(
        id="T02",
        level="error",
        when=lambda r, o, c: (
            r.precision in BITS and o.algorithm == "rtn" and o.iterations is not None
        ),
        message="`quantize.iterations` is set, but `rtn` learns nothing",
        hint="remove it, or set `quantize.algorithm: signround`",
    ),
    Rule(
        id="T04",
        level="error",
        when=lambda r, o, c: r.precision == "int8" and not o.symmetric,
        message="auto-round's format has no zero points at 8 bits",
        hint="remove `quantize.symmetric`, or choose int4",
    ),
    Rule(
        id="T05",
        level="error",
        when=lambda r, o, c: r.precision in BITS and c.model_type == "phimoe",
        message="`torch` quantizes dense models only; `{checkpoint.architecture}` is a mixture "
        "of experts",
        hint="choose fp16 or fp32, or `backend: openvino`",
    ),
    Rule(
        id="T06",
        level="error",
        when=lambda r, o, c: (
            r.precision in BITS
            and math.gcd(*c.input_widths.values(), c.kv_heads * c.head_size) % 32 != 0
        ),
        message="auto-round packs weights whose width and height are multiples of 32; this "
        "model has others",
        hint="choose fp16 or fp32",
    ),
    group_rules.rule("T03", BITS, (32, 64, 128)),
)


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
        unquantized=recipe.precision,
        toolchain=TOOLCHAIN,
        output_bytes=size,
        memory_bytes=size,
    )
    return [step]


def _quantize_step(job: Job[Options]) -> Step:
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    bits, learns = BITS[recipe.precision], options.algorithm == "signround"
    params: dict[str, Json] = {
        "bits": bits,
        **options.model_dump(mode="json", exclude={"iterations"}),
    }
    needs, memory = {"source": "source"}, 4 * checkpoint.parameters + 2**30  # all weights in fp32
    if learns:
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
        output_bytes=(bits + 1) * checkpoint.parameters // 8
        + 4 * checkpoint.vocab_size * checkpoint.hidden_size,
        memory_bytes=memory,
    )


def scheme(job: Job[Options]) -> str:
    """The dtype; or the format, its bits and groups."""
    recipe, options = job.recipe, job.options
    if recipe.precision not in BITS:
        return _DTYPES[recipe.precision]
    kind = "symmetric" if options.symmetric else "asymmetric"
    groups = "a scale per row" if options.group_size == -1 else f"groups of {options.group_size}"
    return f"auto-round, {BITS[recipe.precision]} bits {kind}, {groups}"


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Load a checkpoint in fp32 on the CPU, the only unit it is run on here."""
    from phipipe.backends.torch.session import Session

    return Session(artifact)


def tokenizer(artifact: Path) -> Tokenizer:
    """The checkpoint's tokenizer as transformers reads it."""
    return of_folder(artifact)


FACE = Backend(
    title="PyTorch checkpoint (transformers)",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions=dict.fromkeys(("cpu", "cuda", "metal"), _SCHEMES),
    systems=frozenset({"linux", "windows", "macos"}),
    toolchains={"cpu": TOOLCHAIN},
    cache_bytes={"cpu": 4, "cuda": 2, "metal": 2},
    files=("config.json", "*.safetensors", "*.safetensors.index.json"),
    quantized_by=frozenset({"auto-round"}),
    reads_resaved=True,
    steps=steps,
    scheme=scheme,
    rules=RULES,
    finer=(Finer(options={"algorithm": "signround", "group_size": 32}, told="groups of 32"),),
    open=open,
    tokenizer=tokenizer,
    rotary=rotary.STATIC,
    suits="A checkpoint for transformers. Choose it to compare, or where a server with "
    "PyTorch is the target.",
    advice=ADVICE,
    rank=7,
    colour=1,
)
