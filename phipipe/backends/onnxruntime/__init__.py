"""ONNX Runtime GenAI: checkpoint → fp32 ONNX folder, once → 8 or 4 bits, many times → a folder it
serves.

``convert`` calls onnxruntime-genai's own model builder; ``quantize`` then does to the fp32 graph
what the builder does in one shot, and its initializers are byte-identical to the bare builder's
with equal options (test_onnxruntime.py compares them), except where the builder is wrong or
wasteful:

- tied embeddings at int8: the builder stores the embedding a second time, in fp32; here it reads
  the 8-bit head;
- tied embeddings and an excluded LM head: the builder rounds the embedding to 4 bits unasked; here
  both stay fp32;
- tied embeddings at int4 with "default", asymmetric or with the head at 8 bits: the builder's graph
  reads weights that do not exist, and does not load; here it does.

The builder's windowed KV cache is off: with it, prompts shorter than the window fail at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from phipipe.backends import rules
from phipipe.backends.base import Backend, Finer, Job
from phipipe.errors import RecipeError, StepFailed
from phipipe.models import seeing
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Json, Params, Step

if TYPE_CHECKING:
    from phipipe.algorithms.olive_checkpoint import Packed
    from phipipe.backends.base import Runtime, Tokenizer
    from phipipe.backends.onnxruntime.graph import Linear, Scheme
    from phipipe.models.checkpoints import Checkpoint
    from phipipe.recipe.recipe import Precision
    from phipipe.steps import Inputs, Json, Params

TOOLCHAIN = "onnxruntime"
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.onnxruntime:convert",
    "quantize": "phipipe.backends.onnxruntime:quantize",
    "vision": "phipipe.backends.onnxruntime.vision:vision",
}
_SCHEMES: Mapping[Precision, str] = {
    "fp32": "float32",
    "fp16": "float16",
    "int8": "MatMulNBits, 8 bits",
    "int4": "MatMulNBits, 4 bits",
}
# What the builder itself lists as valid, except what then fails: fp16 on CPUs while decoding
# grouped-query models, fp32 with CUDA while loading (the graph names caches that it does not make).
_ABLE: Mapping[str, tuple[Precision, ...]] = {
    "cpu": ("fp32", "int8", "int4"),
    "cuda": ("fp16", "int8", "int4"),
    "directml": ("fp16", "int4"),
    "webgpu": ("fp16", "int8", "int4"),
    "tensorrt-rtx": ("fp16",),
}
PRECISIONS: Mapping[str, Mapping[Precision, str]] = {
    api: {p: _SCHEMES[p] for p in able} for api, able in _ABLE.items()
}
# The builder's names for execution providers, also the keys of their options in genai_config.json.
PROVIDERS: Mapping[str, str] = {
    "cpu": "cpu",
    "cuda": "cuda",
    "directml": "dml",
    "webgpu": "webgpu",
    "tensorrt-rtx": "NvTensorRtRtx",
}
INT8_ACTIVATIONS = frozenset({"cpu", "webgpu"})  # the builder's default there is accuracy level 4
BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
# Memory at the peak, measured with 3.8 and 14.7 G parameters: torch, transformers and the builder's
# graph; rounding, 0.54 and 0.75 GB, which grows by half a byte per value of the largest matrix.
_BUILDER_BYTES, _ROUNDING_BYTES = 29 * 2**24, 490_000_000
_LOADED = 1.2  # × the file: onnxruntime packs the integers anew; measured at 4 bits
_GRAPH_BYTES = 2**26  # on disk, without weights: mostly the rotary tables
LM_HEAD = "/lm_head/MatMul"
CONFIG = "genai_config.json"


class Options(BaseModel):
    """How the weights are rounded; all algorithms but gptq are data-free."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block_size: Literal[16, 32, 64, 128, 256] = Field(
        default=32,
        description="Weights that share one scale. Smaller is more accurate and larger on disk.",
    )
    symmetric: bool = Field(
        default=True,
        strict=True,
        description="Rounding around zero, without zero points. Off: a zero point per block, "
        "for skewed weights.",
    )
    algorithm: Literal["default", "rtn", "k_quant", "gptq"] = Field(
        default="default",
        description="default: onnxruntime's kernels; symmetric scales take the largest weight's "
        "sign, so all levels "
        "are used. rtn: round to nearest, positive scales, one level lost. k_quant: searches "
        "scale and zero point "
        "of each block, slower, always asymmetric. gptq (int4 only): Olive rounds column by "
        "column and makes up for "
        "each error in the next ones, by what it learns from the calibration text.",
    )
    mixed: Literal["none", "head", "down", "layers"] = Field(
        default="none",
        description="What an int4 model keeps at 8 bits. head: the LM head. down: also the down "
        "projections of the "
        "first and last eighth of the layers, and of every third between. layers: and their "
        "attention inputs.",
    )
    rotate: Literal["quarot", "spinquant"] | None = Field(
        default=None,
        description="Olive turns the weights in their space before they are rounded, so that "
        "none stands out; the "
        "model computes the same. quarot: by fixed (Hadamard) rotations. spinquant: by "
        "rotations that are learned "
        "from the calibration text.",
    )
    accuracy_level: int | None = Field(
        default=None,
        ge=0,
        le=4,
        strict=True,
        description="Arithmetic: 4 int8 activations (fast), 1 fp32, 0 onnxruntime's choice. "
        "Without it 4 on CPUs and WebGPU, 0 elsewhere.",
    )
    exclude: list[str] = Field(
        default=[],
        description="Nodes to leave in fp32, as patterns over their names: "
        "`*/layers.0/mlp/down_proj/*`.",
    )
    embeddings: Literal["auto", "float", "quantized"] = Field(
        default="auto",
        description="Token embeddings. auto: shared with a quantized LM head if tied, else fp32. "
        "quantized: 4 bits also if untied (int4 only).",
    )

    @model_validator(mode="before")
    @classmethod
    def _k_quant_is_asymmetric(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("algorithm") == "k_quant":
            if data.get("symmetric", False) is True:
                raise ValueError(
                    "k_quant always stores zero points: `symmetric` cannot be true with it"
                )
            return {**data, "symmetric": False}
        return data


def steps(job: Job[Options]) -> list[Step]:
    """``convert``, shared by all precisions of one kind of device, and for int8 and int4
    ``quantize``.

    What is asked of Olive comes before: ``rotate`` before ``convert``, ``gptq`` before
    ``quantize``.
    """
    from phipipe.algorithms import olive

    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    before = olive.rotations(
        options.rotate if recipe.precision in BITS else None, recipe, checkpoint
    )
    source = before[-1].name if before else "source"
    api = job.api
    wide = api == "cpu"
    parameters, patch = checkpoint.parameters, dict(job.patch)
    # what comes in and goes out is fp16 on GPUs, the layout of attention is each provider's own
    made = {} if api == "cpu" else {"provider": PROVIDERS[api], "io_dtype": "fp16"}
    # a large model's weights are not written out before they are rounded: quantize reads them in
    # the checkpoint
    linked = checkpoint.large and recipe.precision in BITS
    convert_step = Step(
        name="convert",
        runs="onnxruntime/convert",
        version=2,
        needs={"source": source},
        params={"config_patch": patch, **made, **({"linked": True} if linked else {})},
        unquantized=None if linked else "fp32" if wide else "fp16",
        toolchain=TOOLCHAIN,
        output_bytes=_GRAPH_BYTES if linked else (4 if wide else 2) * parameters,
        memory_bytes=_BUILDER_BYTES
        + (0 if linked else 8 * checkpoint.vocab_size * checkpoint.hidden_size),
    )
    if recipe.precision not in BITS:
        return [convert_step]
    bits, needs = (
        BITS[recipe.precision],
        {"model": "convert", **({"source": source} if linked else {})},
    )
    rounding: list[Step] = []
    if options.algorithm == "gptq":
        rounding = [
            olive.gptq_step(source, checkpoint, recipe.calibrate.tokens, _gptq(options, bits))
        ]
        needs["rounded"] = rounding[0].name
    level = (
        (4 if api in INT8_ACTIVATIONS else 0)
        if options.accuracy_level is None
        else options.accuracy_level
    )
    quantize_step = Step(
        name="quantize",
        runs="onnxruntime/quantize",
        version=1,
        needs=needs,
        params={
            "bits": bits,
            **options.model_dump(mode="json", exclude={"rotate"}),
            "accuracy_level": level,
        },
        toolchain=TOOLCHAIN,
        output_bytes=(size := _quantized_bytes(bits, options, checkpoint, 4 if wide else 2)),
        memory_bytes=_ROUNDING_BYTES + checkpoint.vocab_size * checkpoint.hidden_size // 2,
        loaded_bytes=int(_LOADED * size),
    )
    return [*before, convert_step, *rounding, quantize_step]


def _gptq(options: Options, bits: int) -> dict[str, Json]:
    """The parameters of step ``gptq``; damping is Olive's default."""
    shape = {"group_size": options.block_size, "symmetric": options.symmetric}
    return {"bits": bits, **shape, "mixed": options.mixed, "damp": 0.01}


def _quantized_bytes(bits: int, options: Options, checkpoint: Checkpoint, width: int) -> int:
    """Estimate: linears at their bits, a scale of ``width`` bytes per block, a float embedding
    unless it is shared."""
    embedding = checkpoint.vocab_size * checkpoint.hidden_size
    linears = checkpoint.parameters - (0 if checkpoint.tied else embedding)
    raised = 0
    if bits == 4 and options.mixed != "none":
        raised += embedding
    if bits == 4 and options.mixed == "layers":
        chosen = sum("/mlp/down_proj/" in name for name in _raised("layers", checkpoint.layers))
        joined = (checkpoint.heads + 2 * checkpoint.kv_heads) * checkpoint.head_size
        raised += chosen * checkpoint.hidden_size * (joined + checkpoint.intermediate_size)
    shared = 8 * width + (0 if options.symmetric else bits)
    stored = (bits * linears + (8 - bits) * raised + shared * linears // options.block_size) // 8
    loose = (
        0 if checkpoint.tied else embedding * (width if options.embeddings != "quantized" else 0.5)
    )
    return stored + int(loose)


def scheme(job: Job[Options]) -> str:
    """Operator, bits, block size and what is exceptional."""
    recipe, options = job.recipe, job.options
    if recipe.precision not in BITS:
        return _SCHEMES[recipe.precision]
    kept = {"head": ", 8-bit head", "layers": ", sensitive layers at 8 bits"}
    kept["down"] = ", 8-bit head and down projections"
    words = f"MatMulNBits, {BITS[recipe.precision]} bits, blocks of {options.block_size}"
    return (
        words
        + ("" if options.symmetric else ", asymmetric")
        + (kept.get(options.mixed, "") if recipe.precision == "int4" else "")
        + (", GPTQ" if options.algorithm == "gptq" else "")
        + (", rotated" if options.rotate else "")
    )


FIXUPS = (
    rules.Fixup(
        id="F1",
        rule="M08",
        when=lambda r, c: c.model_type == "phi3" and c.cuts and not c.config.get("layer_types"),
        reason="onnxruntime-genai 0.17 and later apply the sliding window only to layers that "
        "config.json lists",
        patch=lambda c: {"layer_types": ["sliding_attention"] * c.layers},
    ),
)


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to an unquantized ONNX folder that
    onnxruntime-genai loads.

    ``params``: config_patch; provider ("cpu") and io_dtype ("fp32", or "fp16"), both the builder's
    own words; linked (false): whether large weights stay in the checkpoint, for ``quantize`` to
    read them there.

    Raises:
        StepFailed: the builder failed, or what it left is incomplete.
    """
    import tempfile

    from phipipe.models.staging import staged

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        source = inputs["source"]
        if params["config_patch"]:
            source = staged(source, params["config_patch"], Path(scratch) / "source")
        provider, dtype = params.get("provider", "cpu"), params.get("io_dtype", "fp32")
        linked = bool(params.get("linked"))
        _build(source, out, Path(scratch) / "cache", provider, dtype, linked)
        _normalise(out)
        _check_conversion(out, provider, dtype, source if linked else None)


def _build(source: Path, out: Path, cache: Path, provider: str, dtype: str, linked: bool) -> None:
    """Run the builder in this process. Its structured options refuse unknown keys; the older ones
    ignore them."""
    from onnxruntime_genai.models import builder

    from phipipe.backends.onnxruntime import links
    from phipipe.models import mapped

    target = {
        "quant_config": {"io_dtype": dtype, "weights": {"type": "none"}},
        "attention": {"kv_cache": {"windowed": False}},
    }
    where = (None, str(source), str(out), dtype, provider, str(cache))
    # hf_token=false: it would otherwise look for the user's token, although everything is local.
    options = builder.parse_extra_options(
        *where, ["hf_token=false"], builder_config_version=2, target_options=target
    )
    with links.lean_builder(mapped.Checkpoint(source), linked=linked):
        builder.create_model(*where, **options)


def _normalise(folder: Path) -> None:
    """Take out what depends on the machine: the builder signs with the git commit of any enclosing
    repository."""
    from onnxruntime_genai import __version__ as version

    from phipipe.backends.onnxruntime import graph as onnx_graph

    model = onnx_graph.load(folder)
    model.producer_version = version
    onnx_graph.save(model, folder)


def _check_conversion(folder: Path, provider: str, dtype: str, checkpoint: Path | None) -> None:
    """The conversion is whole, in ``dtype``, and its config is one that onnxruntime-genai serves
    with ``provider``."""
    import json

    from phipipe.backends.onnxruntime import graph as onnx_graph
    from phipipe.backends.onnxruntime import links

    model = onnx_graph.load(folder)
    if checkpoint:
        links.check(folder, model, checkpoint)
    else:
        onnx_graph.check_files(folder, model)
    quantized = [n.name for n in model.graph.node if n.op_type in onnx_graph.QUANTIZED]
    if quantized:
        raise StepFailed(f"the conversion is not {dtype}: `{quantized[0]}` is quantized")
    kinds = {linear.name: linear.dtype for linear in onnx_graph.linears(model)}
    if LM_HEAD not in kinds:
        raise StepFailed(f"the conversion has no `{LM_HEAD}`")
    if other := [name for name, kind in kinds.items() if kind != dtype]:
        raise StepFailed(f"the conversion is not {dtype}: `{other[0]}` is {kinds[other[0]]}")
    for name in (CONFIG, "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise StepFailed(f"onnxruntime-genai's builder wrote no `{name}`")
    config = json.loads((folder / CONFIG).read_text("utf-8"))["model"]
    decoder = config["decoder"]
    if not config.get("context_length") or config.get("eos_token_id") in (None, []):
        raise StepFailed(f"`{CONFIG}` names no context length or no end-of-text token")
    providers = [name for entry in decoder["session_options"]["provider_options"] for name in entry]
    if decoder["filename"] != onnx_graph.MODEL or providers != (
        [] if provider == "cpu" else [provider]
    ):
        raise StepFailed(
            f"`{CONFIG}` is not for `{onnx_graph.MODEL}` with the provider `{provider}`"
        )


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, with its weights at ``params["bits"]``
    bits.

    With "gptq" the integers and scales are those of ``inputs["rounded"]``, a checkpoint in Olive's
    layout. The graph is verified from disk before the step counts as done.

    Raises:
        RecipeError: a pattern of ``exclude`` matches no node.
        StepFailed: onnxruntime's quantizer did something else than asked.
    """
    import json

    from phipipe.algorithms import olive_checkpoint
    from phipipe.backends.onnxruntime import graph as onnx_graph
    from phipipe.backends.onnxruntime import rounding as onnx_quantize

    source, checkpoint = inputs["model"], inputs.get("source")
    options = Options.model_validate({k: v for k, v in params.items() if k != "bits"})
    wanted = onnx_graph.linears(onnx_graph.load(source))
    layers = json.loads((source / CONFIG).read_text("utf-8"))["model"]["decoder"][
        "num_hidden_layers"
    ]
    schemes = schemes_of(wanted, options, params["bits"], layers)
    rounded: dict[str, Callable[[], Packed]] = {}
    if options.algorithm == "gptq":
        learned = olive_checkpoint.Rounded(inputs["rounded"])
        places = olive_checkpoint.places(learned, {linear.name: linear.n for linear in wanted})
        schemes = {
            name: replace(one, bits=learned.bits(places[name].linear))
            for name, one in schemes.items()
        }
        rounded = {name: partial(learned.at, places[name]) for name in schemes}
    embedding = _embedding(source, wanted, schemes, options)
    onnx_quantize.quantize(source, out, schemes, embedding, rounded, checkpoint)
    graph = (onnx_graph.MODEL, onnx_graph.DATA)
    copy_beside(source, out, leave=lambda name: name in graph)
    onnx_graph.verify(out, wanted, schemes, embedding)


def schemes_of(
    wanted: Sequence[Linear], options: Options, bits: int, layers: int
) -> dict[str, Scheme]:
    """Node name → how its weight is stored; excluded nodes are absent.

    Raises:
        RecipeError: a pattern of ``exclude`` matches no node.
    """
    from phipipe.backends.onnxruntime.graph import Scheme

    names = [linear.name for linear in wanted]
    excluded = {name for pattern in options.exclude for name in _matches(pattern, names)}
    raised = _raised(options.mixed, layers) if bits == 4 else set()
    return {
        name: Scheme(
            bits=8 if name in raised else bits,
            block_size=options.block_size,
            symmetric=options.symmetric,
            accuracy_level=options.accuracy_level or 0,
            algorithm=options.algorithm,
        )
        for name in names
        if name not in excluded
    }


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    import difflib
    import fnmatch

    found = fnmatch.filter(names, pattern)
    if not found:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
        raise RecipeError(
            f"`quantize.exclude: {pattern}` matches no node", hint=f"did you mean `{near[0]}`?"
        )
    return found


def _raised(mixed: str, layers: int) -> set[str]:
    """Nodes that ``mixed`` keeps at 8 bits: llama.cpp's choice for its mixed types, which the
    builder shares."""
    if mixed == "none":
        return set()
    names = {LM_HEAD}
    if mixed == "down":  # as Olive's k_quant_down
        chosen = [
            i
            for i in range(layers)
            if i < layers / 8 or i >= 7 * layers / 8 or (i - layers // 8) % 3 == 2
        ]
        names |= {f"/model/layers.{i}/mlp/down_proj/MatMul" for i in chosen}
    if mixed == "layers":
        eighth = layers / 8
        between = range(round(eighth) + 2, layers, 3)
        chosen = [i for i in range(layers) if i < eighth or i >= 7 * eighth or i in between]
        projections = ("attn/qkv_proj", "attn/v_proj", "mlp/down_proj")
        names |= {
            f"/model/layers.{i}/{projection}/MatMul" for i in chosen for projection in projections
        }
    return names


def _embedding(
    source: Path, wanted: Sequence[Linear], schemes: Mapping[str, Scheme], options: Options
) -> Scheme | None:
    """How the token embedding is stored; None is fp32."""
    from phipipe.backends.onnxruntime import graph as onnx_graph

    tied = onnx_graph.is_tied(onnx_graph.load(source))
    head = next(linear for linear in wanted if linear.name == LM_HEAD)
    scheme = schemes.get(LM_HEAD)
    if tied:  # rows that end within a block cannot be looked up without padding
        shareable = options.embeddings != "float" and head.k % options.block_size == 0
        return scheme if shareable else None
    if options.embeddings != "quantized":
        return None
    return onnx_graph.Scheme(
        bits=4,
        block_size=options.block_size,
        symmetric=options.symmetric,
        accuracy_level=0,
        algorithm="default",
    )


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Logits from onnxruntime, generation from onnxruntime-genai, both over the same file."""
    from phipipe.backends.onnxruntime import session

    return session.Session(artifact, api)


def tokenizer(artifact: Path) -> Tokenizer:
    """The tokenizer that ships in the folder."""
    from phipipe.backends.onnxruntime import session

    return session.tokenizer(artifact)


FACE = Backend(
    title="ONNX Runtime GenAI",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions=PRECISIONS,
    systems=frozenset({"linux", "windows", "macos", "android", "ios", "web"}),
    host_apis=frozenset({"cpu", "cuda"}),
    toolchains={"cpu": TOOLCHAIN, "cuda": "onnxruntime-cuda"},
    # as wide as what goes in and out
    cache_bytes={api: 4 if api == "cpu" else 2 for api in PRECISIONS},
    files=(
        CONFIG,
        "processor_config.json",
        "model.onnx",
        "model.onnx.data",
        "vision.onnx",
        "vision.onnx.data",
        "embedding.onnx",
    ),
    vision={seeing.PHI3: "onnxruntime/vision"},
    steps=steps,
    scheme=scheme,
    rules=rules.ONNXRUNTIME,
    fixups=FIXUPS,
    is_uniform=lambda o: o.mixed == "none",
    wider="set `quantize.mixed: layers`",
    finer=(Finer(options={"mixed": "layers"}, told="sensitive layers at 8 bits"),),
    open=open,
    tokenizer=tokenizer,
    rank=1,
    colour=0,
)
