"""Qualcomm NPUs (Snapdragon's HTP): checkpoint → static graphs → calibrated fixed point → a context
per graph.

Everything happens on onnxruntime-qnn, whose x86-64 build compiles for any chip and emulates the
NPU. What ships are graphs for prompts and for single tokens that share their weights; the emulator
loads only graphs compiled apart, so those stand in for them when fidelity is measured: same graphs,
same bits, same compiler. The steps are in ``chain``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.backends import genai, widths
from phipipe.backends.absent import absent
from phipipe.backends.base import Backend, Codec, Finer, Job
from phipipe.backends.qnn.chain import TOOLCHAIN, steps
from phipipe.backends.qnn.options import ADVICE, Options
from phipipe.backends.qnn.rules import RULES
from phipipe.backends.qnn.sizes import STORES, weight_bits
from phipipe.backends.qnn.stages import CONFIG, FACTS
from phipipe.models.rotary import STATIC
from phipipe.steps import Params

if TYPE_CHECKING:
    from phipipe.backends.base import Runtime
    from phipipe.recipe.recipe import Precision

STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.qnn.convert:convert",
    "calibrate": "phipipe.backends.qnn.calibrate:calibrate",
    "quantize": "phipipe.backends.qnn.quantize:quantize",
    "compile": "phipipe.backends.qnn.compile:compile",
    "emulate": "phipipe.backends.qnn.emulate:emulate",
    "join": "phipipe.backends.qnn.join:join",
}
_SCHEMES: Mapping[Precision, str] = {"int8": "w8a16", "int4": "w4a16"}


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
