"""OpenVINO: checkpoint → 16-bit IR, once → 8 or 4 bits through NNCF, many times → a folder
openvino-genai serves.

The graph, and every constant of int8 and int4, is what ``optimum-cli export openvino`` makes with
equal options (test_openvino.py compares them). Three things are done otherwise:

- every option is spelled out, since optimum takes other defaults by a model's size and by its
  folder's name;
- norms and rotary constants of the 16-bit IR stay fp32: they weigh nothing, and optimum's fp16
  rounds some of them;
- nodes are numbered by their place: the converters count on through a process, so that no two runs
  are equal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.backends.base import LEARNING, Backend, Codec, Finer, Job, Runtime, Tokenizer
from phipipe.backends.openvino.files import LANGUAGE
from phipipe.backends.openvino.options import ADVICE, PIPELINE, Options
from phipipe.backends.openvino.rules import RULES
from phipipe.backends.openvino.sizes import STORES, stored_bytes, weight_bits, widths_of
from phipipe.backends.widths import widens_layers
from phipipe.models import rotary
from phipipe.recipe.learned import groups_words
from phipipe.steps import Params, Step
from phipipe.vision import kinds

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Precision, Recipe

# Keeps OpenVINO's telemetry out: it writes into the home folder and looks for the network, both at
# import. All modules of this folder are imported after this one.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

TOOLCHAIN = "openvino"
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.openvino.convert:convert",
    "quantize": "phipipe.backends.openvino.quantize:quantize",
    "vision": "phipipe.backends.openvino.vision:vision_graphs",
    "verify_npu": "phipipe.backends.openvino.npu:verify_npu",
}
SCHEMES: Mapping[Precision, str] = {
    "fp32": "f32",
    "fp16": "f16",
    "int8": "int8 per row",
    "int4": "int4 in groups",
}
QUANTIZED = ("int8", "int4")
CACHES: Mapping[str, str] = {"q8": "u8", "q4": "u4"}  # KV_CACHE_PRECISION
LEARNED = "learned"
ALGORITHMS = {"awq": "AWQ", "scale_estimation": "scale estimation", "gptq": "GPTQ"}
# Anonymous memory: the largest RssAnon of 20 samples a second (Linux x86-64), Phi-3.5-mini's shape:
# converting 0.79 to 0.95 GB, int4 in the same process 1.62 GB (alone 1.19): NNCF copies the largest
# matrix, embedding or head. Both at once, as for large models: 1.80 GB; Phi-4's shape: 6.93 GB.
CONVERSION_BYTES = 870_000_000
QUANTIZATION_BYTES, DIRECT_BYTES = 740_000_000, 580_000_000
WORKING_BYTES, DIRECT_WORKING_BYTES = 9, 12.4  # per value of that matrix


def context_length(job: Job[Options]) -> int | None:
    """An NPU's cache has room for the longest prompt and the answer; elsewhere it grows as it is
    used."""
    options = job.options
    return options.prompt_length + options.response_length if job.api == "intel-npu" else None


def scheme(job: Job[Options]) -> str:
    """Bits, symmetry, groups, and what is exceptional: "int4 asymmetric, groups of 128"."""
    recipe, options = job.recipe, job.options
    if recipe.precision not in QUANTIZED:
        return SCHEMES[recipe.precision]
    if job.learns:
        learned = f"int4 symmetric, {groups_words(recipe.weights.group_size)}"
        return f"{learned}, {recipe.weights.learn} {LEARNED}{', map' if options.map else ''}"
    words = [f"{recipe.precision} {'symmetric' if options.symmetric else 'asymmetric'}"]
    if recipe.precision == "int4":
        words.append(groups_words(options.group_size))
        words += [f"{options.ratio:.0%} of the weights"] if options.ratio < 1 else []
        words += ["all layers"] if options.all_layers else []
        words += [title for name, title in ALGORITHMS.items() if getattr(options, name)]
    words += ["map"] if options.map else []
    return ", ".join(words)


def steps(job: Job[Options]) -> list[Step]:
    """``convert`` to 16 bits, shared by fp16, int8 and int4 (fp32 has its own); ``quantize`` for
    the last two.

    A large model is not written out in 16 bits first: ``quantize`` then converts it too, and rounds
    each matrix as it lies in the checkpoint. Tracing it again for another variant takes less time
    than writing it and reading it back.
    """
    if job.recipe.precision not in QUANTIZED:
        return [_convert_step(job)]
    return [_quantize_step(job)] if _is_direct(job) else [_convert_step(job), _quantize_step(job)]


def _is_direct(job: Job[Options]) -> bool:
    """Whether ``quantize`` starts from the checkpoint."""
    return job.checkpoint.large and not _learns(job)


def _learns(job: Job[Options]) -> bool:
    return job.recipe.precision == "int4" and job.options.learns


def _convert_step(job: Job[Options]) -> Step:
    width: Precision = "fp32" if job.recipe.precision == "fp32" else "fp16"
    size = 4 if width == "fp32" else 2
    return Step(
        name="convert",
        runs="openvino/convert",
        version=1,
        needs={"source": "source"},
        params={"precision": width, "config_patch": dict(job.patch)},
        unquantized="float32" if width == "fp32" else "float16",
        toolchain=TOOLCHAIN,
        output_bytes=size * job.checkpoint.parameters,
        memory_bytes=CONVERSION_BYTES + _cast_bytes(job.checkpoint, size),
    )


def _cast_bytes(checkpoint: Checkpoint, size: int) -> int:
    """What the weights take in memory at ``size`` bytes each; none where they stay in their
    files, stored in 16 bits."""
    is_cast = size != 2 or checkpoint.weight_bytes != 2 * checkpoint.parameters
    return size * checkpoint.parameters if is_cast else 0


def _quantize_step(job: Job[Options]) -> Step:
    options, parameters, direct = job.options, job.checkpoint.parameters, _is_direct(job)
    bits = 4 if job.recipe.precision == "int4" else 8
    four = options.model_dump(mode="json", exclude={"map", *PIPELINE})
    chosen: Params = four if bits == 4 else {"symmetric": options.symmetric}
    size = stored_bytes(job, bits)
    rows = bits == 4 and options.group_size == -1  # which CPUs widen to 8 bits
    needs = {"source": "source"} if direct else {"model": "convert"}
    needs |= {"calibration": "calibration"} if _learns(job) else {}
    if job.widths:
        widths = {name: list(width) for name, width in widths_of(job).items()}
        chosen = {**chosen, "widths": widths}
    if job.learns:
        needs, chosen = {**needs, "weights": "weights"}, {**chosen, "symmetric": True}
    return Step(
        name="quantize",
        runs="openvino/quantize",
        version=1,
        needs=needs,
        params={"bits": bits, **chosen, **({"config_patch": dict(job.patch)} if direct else {})},
        toolchain=TOOLCHAIN,
        output_bytes=size,
        memory_bytes=_quantization_bytes(job, size),
        loaded_bytes=size + (parameters if rows else size // 4),
    )


def _quantization_bytes(job: Job[Options], size: int) -> int:
    """Memory for rounding to ``size`` bytes in all."""
    checkpoint = job.checkpoint
    largest = checkpoint.vocab_size * checkpoint.hidden_size
    if _is_direct(job):
        working = int(DIRECT_BYTES + DIRECT_WORKING_BYTES * largest)
        return working + _cast_bytes(checkpoint, 2)
    activations = 4 * job.recipe.calibrate.tokens * checkpoint.intermediate_size
    learning = size + 2 * checkpoint.parameters + activations if _learns(job) else 0
    return QUANTIZATION_BYTES + WORKING_BYTES * largest + learning


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """The graph on the CPU in fp32 arithmetic, so that figures show what the stored values cost; or
    on GPU or NPU."""
    if api == "intel-npu":
        from phipipe.backends.openvino.npu import opened

        return opened(artifact)
    return _session(artifact, api)


def open_run(artifact: Path, api: str = "cpu", cache: str = "") -> Runtime:
    """The graph with OpenVINO's own settings."""
    return _session(artifact, api, as_run=True, cache=CACHES.get(cache, ""))


def _session(artifact: Path, api: str, as_run: bool = False, cache: str = "") -> Runtime:
    if (artifact / LANGUAGE).is_file():
        from phipipe.backends.openvino.vision_session import Session as Seeing

        return Seeing(artifact, api, as_run, cache)
    from phipipe.backends.openvino.session import Session

    return Session(artifact, api, as_run, cache)


def knob(recipe: Recipe, api: str) -> str:
    """OpenVINO's own settings of the CPU, as a compiled model names them. On a GPU it is scored
    with its own."""
    if api != "cpu":
        return ""
    is_rounded = recipe.precision in QUANTIZED
    rounded = "8-bit activations and cache" if is_rounded else "float16 cache"
    return f"{rounded}, bfloat16 arithmetic where the processor has it"


def usual_cache(recipe: Recipe, api: str) -> str | None:
    """u8 for weights of 8 and 4 bits on CPUs (``KV_CACHE_PRECISION`` of a compiled model)."""
    return "q8" if api == "cpu" and recipe.precision in QUANTIZED else None


def tokenizer(artifact: Path) -> Tokenizer:
    """The tokenizer graphs that ship in the folder, as openvino-genai reads them, in a limited
    child."""
    from phipipe.sandbox.tokenizer import open_in_child

    module = "phipipe.backends.openvino.vocabulary"
    return open_in_child(f"{module}:GenaiTokenizer", artifact, [module])


def codec(params: Params) -> Codec:
    """What NNCF rounds rows of a weight to."""
    from phipipe.backends.openvino.codecs import codec

    return codec(params)


FACE = Backend(
    title="OpenVINO (NNCF)",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions={
        "cpu": SCHEMES,
        "intel-gpu": {name: words for name, words in SCHEMES.items() if name != "fp32"},
        "intel-npu": {"int4": SCHEMES["int4"]},
    },
    systems=frozenset({"linux", "windows", "macos"}),
    tokens_only=frozenset({"intel-npu"}),
    emulated={"intel-npu": "openvino/verify_npu"},
    cache_bytes={"cpu": 1, "intel-gpu": 2, "intel-npu": 2},  # the CPU plugin keeps 8 bits
    files=("config.json", "preprocessor_config.json", "openvino_*.xml", "openvino_*.bin"),
    eyes_on=frozenset({"cpu", "intel-gpu"}),
    vision=dict.fromkeys((kinds.PHI3, kinds.PHI4), "openvino/vision"),
    # openvino-genai 2026.4 takes the crops of others for as many high as they are wide
    # (VisionEncoderPhi3V::encode gives width for height), so they are padded to squares before.
    square=frozenset({kinds.PHI3}),
    steps=steps,
    scheme=scheme,
    context_length=context_length,
    rules=RULES,
    is_uniform=lambda o: o.ratio == 1 and not widens_layers(o.map),
    stores=STORES,
    weight_bits=weight_bits,
    codec=codec,
    wider="set `quantize.ratio: 0.8`, or `precision: int8`",
    apart={"ratio": 0.8},
    finer=(
        replace(LEARNING, not_on=frozenset({"intel-npu"})),
        replace(LEARNING, options={**LEARNING.options, "group_size": -1}),
        Finer(
            options={"awq": True, "scale_estimation": True}, told="scale estimation", unless=LEARNED
        ),
        Finer(
            options={"ratio": 0.8},
            told="of the weights",
            not_on=frozenset({"intel-npu"}),
            unless=LEARNED,
        ),
    ),
    open=open,
    knob=knob,
    open_run=open_run,
    caches=CACHES,
    usual_cache=usual_cache,
    tokenizer=tokenizer,
    rotary=rotary.STATIC,
    cuts_digits=False,
    unable={"gemma3_text": "optimum-intel 2.2 exports it with transformers up to 5.0 alone"},
    suits="Intel's CPUs, GPUs and NPUs, and models that see. Choose it for Intel PCs.",
    advice=ADVICE,
    hub_tags=("openvino-genai",),
    rank=2,
    colour=3,
)
