"""The steps of a build: a stage is quantized, compiled and emulated by itself.

What a stage's steps read is that stage alone, so their keys hold nothing of the others: a width
that changes in one part compiles that part. Stages go side by side as far as memory allows, and one
is emulated while the next one is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from phipipe.algorithms import olive
from phipipe.backends import widths
from phipipe.backends.base import Job
from phipipe.backends.qnn import times
from phipipe.backends.qnn.options import Options
from phipipe.backends.qnn.rules import EMULATED_PARAMETERS
from phipipe.backends.qnn.sizes import parts_of, sizes, stage_bytes, stage_parameters
from phipipe.backends.qnn.stages import HEAD, stages_of
from phipipe.models import linears
from phipipe.steps import Json, Step

TOOLCHAIN = "qnn"
# Qualcomm's numbers of chips: soc_model and the HTP's architecture, as in the QNN headers and
# onnxruntime-qnn's pages.
SOCS: Mapping[str, Mapping[str, int]] = {
    "x-elite": {"model": 60, "arch": 73},
    "x2-elite": {"model": 87, "arch": 81},
    "8-gen-3": {"model": 57, "arch": 75},
    "8-elite": {"model": 69, "arch": 79},
}
DECODED = 32  # tokens that are emulated one by one
FEW = 2  # the same where emulation takes minutes for each
RUNTIME_BYTES = 2**29

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Build:
    """What all steps of a build count with: bytes by ``sizes``, and for each stage its bytes and
    its weights."""

    job: Job[Options]
    bits: int
    parts: int
    size: Mapping[str, int]
    stored: Mapping[str, int]
    weights: Mapping[str, int]

    @property
    def stages(self) -> dict[str, range]:
        return stages_of(self.job.checkpoint.layers, self.parts)

    def attended(self, stage: str) -> int:
        """Layers × positions of the cache × hidden size: what attention costs by."""
        hidden, context = self.job.checkpoint.hidden_size, self.job.options.context_length
        return len(self.stages[stage]) * context * hidden

    @property
    def is_small(self) -> bool:
        """Whether all of its text is emulated."""
        return self.job.checkpoint.parameters <= EMULATED_PARAMETERS


def steps(job: Job[Options]) -> list[Step]:
    """``convert`` (float), ``calibrate`` (ranges); for each stage ``quantize``, ``compile-apart``
    to be emulated, ``emulate``, ``compile`` to be shipped; and all stages in one folder to be
    scored, and to be shipped.

    With ``options.rotate`` a step ``rotate`` comes first. Small models are scored compiled, large
    ones after ``quantize``.
    """
    bits = 8 if job.recipe.precision == "int8" else 4
    parts = job.options.parts or parts_of(job.checkpoint)
    build = _Build(
        job=job,
        bits=bits,
        parts=parts,
        size=sizes(job, parts),
        stored=stage_bytes(job, bits, parts),
        weights=stage_parameters(job.checkpoint, parts),
    )
    before = olive.rotations(job.options.rotate, job.checkpoint)
    source = before[-1].name if before else "source"
    scored = "compile-apart" if build.is_small else "quantize"
    names = list(build.stages)
    return [
        *before,
        _convert(build, source),
        _calibrate(build),
        *(_quantize(build, stage) for stage in names),
        *(_compile(build, "compile-apart", stage) for stage in names),
        *(_emulate(build, i) for i in range(len(names))),
        _join(build, scored, twin=True),
        *(_compile(build, "compile", stage) for stage in names),
        _join(build, "compile"),
    ]


def step_of(verb: str, stage: str) -> str:
    """The name of the step that does ``verb`` to ``stage``: "compile-0", "compile-head"."""
    return f"{verb}-{stage.removeprefix('decoder_')}"


def _convert(build: _Build, source: str) -> Step:
    job, size = build.job, build.size
    shape = {
        "prompt_length": job.options.prompt_length,
        "context_length": job.options.context_length,
        "parts": build.parts,
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
        memory_bytes=size["tensor"] * 3 + RUNTIME_BYTES,
        seconds=times.convert(job.checkpoint.parameters),
    )


def _calibrate(build: _Build) -> Step:
    size = build.size
    tokens = build.job.recipe.calibrate.tokens
    return Step(
        name="calibrate",
        runs="qnn/calibrate",
        version=1,
        needs={"model": "convert", "calibration": "calibration"},
        toolchain=TOOLCHAIN,
        output_bytes=2**20,
        memory_bytes=size["border"] + 4 * size["caches"] + size["mapped"] * 3 // 2 + RUNTIME_BYTES,
        seconds=times.calibrate(sum(build.weights.values()), tokens),
    )


def _quantize(build: _Build, stage: str) -> Step:
    job, layers = build.job, build.stages[stage]
    kept = job.options.keep_8bit if build.bits == 4 else []
    params: dict[str, Json] = {"stage": stage, "bits": build.bits, "keep_8bit": sorted(kept)}
    if own := of_stage(job.widths, layers):
        params["widths"] = widths.to_params(own)
    return Step(
        name=step_of("quantize", stage),
        runs="qnn/quantize",
        version=4,
        needs={"model": "convert", "ranges": "calibrate"},
        params=params,
        toolchain=TOOLCHAIN,
        output_bytes=build.stored[stage],
        memory_bytes=2 * build.size["tensor"] + RUNTIME_BYTES,
        seconds=times.quantize(build.weights[stage]),
    )


def of_stage(named: Mapping[str, T], layers: range) -> dict[str, T]:
    """What ``named`` has for matrices of a part with ``layers``, or with none for the head."""
    found = {name: (linears.layer_of(name), value) for name, value in named.items()}
    return {
        name: value
        for name, (layer, value) in found.items()
        if (layer in layers if layer is not None else not layers)
    }


def _compile(build: _Build, verb: str, stage: str) -> Step:
    """``compile``: the graphs for prompts and single tokens share one binary; ``compile-apart``:
    they do not, and the emulator can load them."""
    shared, stored = verb == "compile", build.stored[stage]
    chip = dict(SOCS[build.job.options.soc])
    return Step(
        name=step_of(verb, stage),
        runs="qnn/compile",
        version=3,
        needs={"model": step_of("quantize", stage)},
        params={"stage": stage, "soc": chip, "shared": shared},
        toolchain=TOOLCHAIN,
        fresh=True,  # contexts hold numbers that the compiler counts up as long as a process lives
        output_bytes=stored if shared else 2 * stored,
        memory_bytes=8 * stored + 2**30,
        seconds=times.compile(build.weights[stage], build.attended(stage)),
    )


def _emulate(build: _Build, at: int) -> Step:
    """The stage number ``at``; the last one's output is what the whole artifact computes."""
    names, job = list(build.stages), build.job
    stage, decoded = names[at], DECODED if build.is_small else FEW
    first = {"rest": "convert", "baseline": "baseline"}
    before = {"before": step_of("emulate", names[at - 1])} if at else first
    return Step(
        name=step_of("emulate", stage),
        runs="qnn/emulate",
        version=1,
        needs={"compiled": step_of("compile-apart", stage), **before},
        params={"stage": stage, "decoded": decoded},
        toolchain=TOOLCHAIN,
        fresh=True,  # it stays on one CPU
        tried=stage == HEAD,
        output_bytes=_passed_bytes(build, stage, decoded),
        memory_bytes=3 * build.stored[stage] + RUNTIME_BYTES,  # one graph at a time
        seconds=times.emulate(
            build.weights[stage], build.attended(stage), job.options.prompt_length, decoded
        ),
    )


def _passed_bytes(build: _Build, stage: str, decoded: int) -> int:
    """What passes to the next stage, or the logits, in float32."""
    c = build.job.checkpoint
    width = c.vocab_size if stage == HEAD else c.hidden_size
    return 4 * width * (build.job.options.prompt_length + decoded)


def _join(build: _Build, verb: str, *, twin: bool = False) -> Step:
    """All stages after ``verb``, as one folder; ``twin``: it is scored in place of what ships."""
    stored, table = sum(build.stored.values()), build.size["embedding"] + 2**20
    stages = {stage: step_of(verb, stage) for stage in build.stages}
    return Step(
        name=verb,
        runs="qnn/join",
        version=1,
        needs={"rest": "convert", **stages},
        twin=twin,
        output_bytes=table + stored * (2 if verb == "compile-apart" else 1),
    )
