"""Qualcomm NPUs (Snapdragon's HTP): checkpoint → static graphs → calibrated fixed point → a context
per graph.

Everything happens on onnxruntime-qnn, whose x86-64 build compiles for any chip and emulates the
NPU. What ships are graphs for prompts and for single tokens that share their weights; the emulator
loads only graphs compiled apart, so those stand in for them when fidelity is measured: same graphs,
same bits, same compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.algorithms import olive
from phipipe.backends import genai, widths
from phipipe.backends.absent import absent
from phipipe.backends.base import Backend, Codec, Finer, Job
from phipipe.backends.qnn.options import ADVICE, Options
from phipipe.backends.qnn.rules import EMULATED_PARAMETERS, RULES
from phipipe.backends.qnn.sizes import STORES, parts_of, sizes, weight_bits
from phipipe.backends.qnn.stages import CONFIG, FACTS
from phipipe.models.rotary import STATIC
from phipipe.steps import Json, Params, Step

if TYPE_CHECKING:
    from phipipe.backends.base import Runtime
    from phipipe.recipe.recipe import Precision

TOOLCHAIN = "qnn"
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.qnn.convert:convert",
    "quantize": "phipipe.backends.qnn.quantize:quantize",
    "compile": "phipipe.backends.qnn.compile:compile",
}
_SCHEMES: Mapping[Precision, str] = {"int8": "w8a16", "int4": "w4a16"}
# Qualcomm's numbers of chips: soc_model and the HTP's architecture, as in the QNN headers and
# onnxruntime-qnn's pages.
SOCS: Mapping[str, Mapping[str, int]] = {
    "x-elite": {"model": 60, "arch": 73},
    "x2-elite": {"model": 87, "arch": 81},
    "8-gen-3": {"model": 57, "arch": 75},
    "8-elite": {"model": 69, "arch": 79},
}


def steps(job: Job[Options]) -> list[Step]:
    """``convert`` (float), ``quantize`` (calibrated), ``compile-apart`` to be emulated, ``compile``
    to be shipped.

    With ``options.rotate`` a step ``rotate`` comes first. Large models are scored after
    ``quantize``.
    """
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    bits = 8 if recipe.precision == "int8" else 4
    parts = options.parts or parts_of(checkpoint)
    size = sizes(job, bits, parts)
    small = checkpoint.parameters <= EMULATED_PARAMETERS
    before = olive.rotations(options.rotate, checkpoint)
    source = before[-1].name if before else "source"
    return [
        *before,
        _convert_step(job, source, parts, size),
        _quantize_step(job, bits, size, scored=not small),
        _compile_step("compile-apart", options, size, twin=small),
        _compile_step("compile", options, size, shared=True),
    ]


def _convert_step(job: Job[Options], source: str, parts: int, size: Mapping[str, int]) -> Step:
    shape = {
        "prompt_length": job.options.prompt_length,
        "context_length": job.options.context_length,
        "parts": parts,
    }
    return Step(
        name="convert",
        runs="qnn/convert",
        version=3,
        needs={"source": source},
        params={"config_patch": dict(job.patch), **shape},
        toolchain=TOOLCHAIN,
        unquantized="float32",
        output_bytes=size["float"],
        memory_bytes=size["tensor"] * 3 + 2**29,
    )


def _quantize_step(job: Job[Options], bits: int, size: Mapping[str, int], *, scored: bool) -> Step:
    """``scored``: fidelity is measured on its output, in place of what ships."""
    kept = job.options.keep_8bit if bits == 4 else []
    caches = 4 * size["caches"] + size["mapped"] * 3 // 2
    params: dict[str, Json] = {"bits": bits, "keep_8bit": sorted(kept)}
    if job.widths:
        params["widths"] = widths.to_params(job.widths)
    return Step(
        name="quantize",
        runs="qnn/quantize",
        version=3,
        needs={"model": "convert", "calibration": "calibration"},
        params=params,
        toolchain=TOOLCHAIN,
        twin=scored,
        output_bytes=size["fixed"],
        memory_bytes=2 * size["tensor"] + size["border"] + caches + 2**29,
    )


def _compile_step(
    name: str,
    options: Options,
    size: Mapping[str, int],
    *,
    twin: bool = False,
    shared: bool = False,
) -> Step:
    """``shared``: the graphs for prompts and single tokens share one binary; else the emulator can
    load them."""
    return Step(
        name=name,
        runs="qnn/compile",
        version=2,
        needs={"model": "quantize"},
        params={"soc": dict(SOCS[options.soc]), "shared": shared},
        toolchain=TOOLCHAIN,
        twin=twin,
        tried=not shared,
        output_bytes=size["fixed"] if shared else 2 * size["fixed"] - size["embedding"],
        memory_bytes=8 * size["part"] + 2**30,
    )


def scheme(job: Job[Options]) -> str:
    """Bits of weights and activations, and what is exceptional."""
    recipe, options = job.recipe, job.options
    words = _SCHEMES[recipe.precision]
    if recipe.precision == "int4" and options.keep_8bit:
        words += f", {' and '.join(options.keep_8bit)} at 8 bits"
    words += ", map" if options.map else ""
    return f"{words}, 8-bit caches{', rotated' if options.rotate else ''}"


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Graphs on the CPU, or compiled ones on the HTP or its emulator; "hexagon" insists on the
    NPU."""
    from phipipe.backends.qnn import htp, session

    if api == "hexagon" and htp.emulated():
        raise absent("Hexagon NPU", "onnxruntime-qnn")
    return session.Session(artifact)


def codec(params: Params) -> Codec:
    """What rows of a weight are rounded to."""
    from phipipe.backends.qnn.codecs import codec

    return codec(params)


FACE = Backend(
    title="Qualcomm QNN (ONNX Runtime GenAI)",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions={"hexagon": _SCHEMES},
    systems=frozenset({"windows", "android"}),
    host_apis=frozenset(),
    emulated={"hexagon": "evaluate/check_decode"},
    cache_bytes={"hexagon": 1},
    files=(CONFIG, FACTS, "*.onnx", "*.data", "*.bin"),
    has_contexts=True,
    steps=steps,
    scheme=scheme,
    context_length=lambda job: job.options.context_length,
    rules=RULES,
    by_rows=lambda job: True,
    is_uniform=lambda o: not o.keep_8bit and not widths.widens_layers(o.map),
    stores=STORES,
    weight_bits=weight_bits,
    codec=codec,
    wider="leave `quantize.keep_8bit` as it is by default",
    finer=(Finer(options={"keep_8bit": ["lm_head", "down_proj", "o_proj"]}, told="o_proj"),),
    normalizes=False,
    cuts_digits=False,
    open=open,
    tokenizer=genai.tokenizer,
    rotary=STATIC,
    suits="Qualcomm's NPUs. Choose it for Snapdragon laptops and phones where battery "
    "counts; context and prompt lengths are fixed.",
    advice=ADVICE,
    library="onnxruntime-genai",
    hub_tags=("onnx", "onnxruntime"),
    rank=3,
    colour=6,
)
