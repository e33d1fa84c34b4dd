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

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe import hardware
from phipipe.algorithms import olive
from phipipe.backends import genai, widths
from phipipe.backends.base import LEARNING, Backend, Finer, Job
from phipipe.backends.onnxruntime.layout import CONFIG, DATA, EMBEDDING, MODEL, PROCESSOR, VISION
from phipipe.backends.onnxruntime.options import ADVICE, STORES, Options
from phipipe.backends.onnxruntime.rules import RULES
from phipipe.backends.onnxruntime.schemes import widths_of
from phipipe.backends.onnxruntime.sizes import quantized_bytes, weight_bits
from phipipe.backends.rules import Fixup
from phipipe.models import rotary
from phipipe.steps import Json, Params, Step
from phipipe.vision import kinds as vision

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Runtime
    from phipipe.recipe.recipe import Precision

TOOLCHAIN = "onnxruntime"
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.onnxruntime.convert:convert",
    "quantize": "phipipe.backends.onnxruntime.quantize:quantize",
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
_TABLES = ("linear", "llama3", "yarn")  # scalings whose tables ``positions`` makes
_LOADED = 1.2  # × the file: onnxruntime packs the integers anew; measured at 4 bits
_GRAPH_BYTES = 2**26  # on disk, without weights: mostly the rotary tables


def steps(job: Job[Options]) -> list[Step]:
    """``convert``, shared by all precisions of one kind of device, and for int8 and int4
    ``quantize``.

    What is asked of Olive comes before: ``rotate`` before ``convert``, ``gptq`` before
    ``quantize``.
    """
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    rotation = options.rotate if recipe.precision in BITS else None
    before = olive.rotations(rotation, checkpoint)
    source = before[-1].name if before else "source"
    # a large model's weights are not written out before they are rounded: quantize reads them in
    # the checkpoint
    linked = checkpoint.large and recipe.precision in BITS
    conversion = _convert_step(job, source, linked)
    if recipe.precision not in BITS:
        return [conversion]
    bits = BITS[recipe.precision]
    needs = {"model": "convert", **({"source": source} if linked else {})}
    rounding: list[Step] = []
    if options.algorithm == "gptq":
        rounding = [
            olive.gptq_step(source, checkpoint, recipe.calibrate.tokens, _gptq(options, bits))
        ]
        needs["rounded"] = rounding[0].name
    if job.learns:
        needs["weights"] = "weights"
    return [*before, conversion, *rounding, _quantize_step(job, bits, needs)]


def _convert_step(job: Job[Options], source: str, linked: bool) -> Step:
    """``linked``: large weights stay in the checkpoint."""
    api, checkpoint = job.api, job.checkpoint
    wide = api == "cpu"
    # what comes in and goes out is fp16 on GPUs, the layout of attention is each provider's own
    graph: dict[str, Json] = {} if wide else {"provider": PROVIDERS[api], "io_dtype": "fp16"}
    if checkpoint.scaling in _TABLES and checkpoint.model_type not in rotary.PHI_TYPES:
        graph["rotary"] = checkpoint.scaling
    embedding = checkpoint.vocab_size * checkpoint.hidden_size
    return Step(
        name="convert",
        runs="onnxruntime/convert",
        version=3,
        needs={"source": source},
        params={"config_patch": dict(job.patch), **graph, **({"linked": True} if linked else {})},
        unquantized=None if linked else "float32" if wide else "float16",
        toolchain=TOOLCHAIN,
        output_bytes=_GRAPH_BYTES if linked else (4 if wide else 2) * checkpoint.parameters,
        memory_bytes=_BUILDER_BYTES + (0 if linked else 8 * embedding),
    )


def _quantize_step(job: Job[Options], bits: int, needs: Mapping[str, str]) -> Step:
    options, checkpoint = job.options, job.checkpoint
    level = options.accuracy_level
    if level is None:
        level = 4 if job.api in INT8_ACTIVATIONS else 0
    mapped = widths_of(job)
    size = quantized_bytes(bits, options, checkpoint, _float_bytes(job), mapped)
    chosen = options.model_dump(mode="json", exclude={"rotate", "map", "mixed"})
    if mapped:
        chosen["widths"] = widths.to_params(mapped)
    return Step(
        name="quantize",
        runs="onnxruntime/quantize",
        version=1,
        needs=needs,
        params={"bits": bits, **chosen, "accuracy_level": level},
        toolchain=TOOLCHAIN,
        output_bytes=size,
        memory_bytes=_ROUNDING_BYTES + checkpoint.vocab_size * checkpoint.hidden_size // 2,
        loaded_bytes=int(_LOADED * size),
    )


def _float_bytes(job: Job[Options]) -> int:
    return 4 if job.api == "cpu" else 2


def _gptq(options: Options, bits: int) -> dict[str, Json]:
    """The parameters of step ``gptq``; damping is Olive's default."""
    shape = {"group_size": options.block_size, "symmetric": options.symmetric}
    return {"bits": bits, **shape, "mixed": options.mixed, "damp": 0.01}


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
        + (", precision map" if options.map else "")
        + (", GPTQ" if options.algorithm == "gptq" else "")
        + (", rotated" if options.rotate else "")
    )


FIXUPS = (
    Fixup(
        id="F11",
        rule="F11",
        when=lambda r, c: (
            c.model_type == "phi3"
            and c.scaling == "default"
            and c.config.get("original_max_position_embeddings", 4096) != c.context_length
        ),
        reason="the builder takes a Phi-3 whose two contexts differ for one with LongRoPE, and "
        "this one has none",
        patch=lambda c: {"original_max_position_embeddings": c.context_length},
    ),
    Fixup(
        id="F1",
        rule="M08",
        when=lambda r, c: (
            c.model_type in ("phi3", "mistral") and c.cuts and not c.config.get("layer_types")
        ),
        reason="onnxruntime-genai 0.17 and later apply the sliding window only to layers that "
        "config.json lists",
        patch=lambda c: {
            "layer_types": ["sliding_attention"] * c.layers,
            # transformers takes a Mistral with such a list for a Ministral, and wants this of it
            **({"head_dim": c.head_size} if c.model_type == "mistral" else {}),
        },
    ),
)


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Logits from onnxruntime, generation from onnxruntime-genai, both over the same file."""
    from phipipe.backends.onnxruntime import session

    return session.Session(artifact, api)


def open_to_answer(artifact: Path, api: str = "cpu") -> Runtime:
    """As ``open``; on the CPU it generates with a thread for each core that it may use."""
    from phipipe.backends.onnxruntime import session

    threads = hardware.threads(hardware.whole_cores()) if api == "cpu" else 0
    return session.Session(artifact, api, threads)


def codec(params: Params) -> Codec:
    """What onnxruntime rounds rows of a weight to."""
    from phipipe.backends.onnxruntime.codecs import codec

    return codec(params)


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
    files=(CONFIG, PROCESSOR, MODEL, DATA, VISION, f"{VISION}.data", EMBEDDING),
    vision=dict.fromkeys((vision.PHI3, vision.PHI4), "onnxruntime/vision"),
    picture_tokens={vision.PHI4: vision.PHI4_PICTURE},
    unable={
        "gemma3_text": "onnxruntime-genai 0.18's builder does not find its two rotary tables where "
        "transformers 5 has them"
    },
    rotary=rotary.STATIC - {rotary.ELSEWHERE},
    steps=steps,
    scheme=scheme,
    rules=RULES,
    fixups=FIXUPS,
    is_uniform=lambda o: o.mixed == "none" and not widths.widens_layers(o.map),
    wider="set `quantize.mixed: layers`",
    apart={"mixed": "layers"},
    finer=(
        LEARNING,
        Finer(
            options={"mixed": "layers"},
            told="sensitive layers at 8 bits",
            unless=LEARNING.told,
        ),
    ),
    normalizes=False,
    cuts_digits=False,
    open=open,
    wide=open_to_answer,
    tokenizer=genai.tokenizer,
    suits="Windows, phones, browsers and NVIDIA GPUs through one library with a C API. "
    "Choose it for an app of yours, for DirectML and WebGPU, and for Foundry Local.",
    advice=ADVICE,
    stores=STORES,
    tables=True,
    weight_bits=lambda job, name, stored, columns: weight_bits(
        stored, job.options, _float_bytes(job)
    ),
    codec=codec,
    library="onnxruntime-genai",
    hub_tags=("onnx", "onnxruntime"),
    rank=1,
    colour=0,
)
