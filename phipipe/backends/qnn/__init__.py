"""Qualcomm NPUs (Snapdragon's HTP): checkpoint → static graphs → calibrated fixed point → a context
per graph.

Everything happens on onnxruntime-qnn, whose x86-64 build compiles for any chip and emulates the
NPU. What ships are graphs for prompts and for single tokens that share their weights; the emulator
loads only graphs compiled apart, so those stand in for them when fidelity is measured: same graphs,
same bits, same compiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from phipipe.backends import genai
from phipipe.backends.base import Backend, Finer, Job
from phipipe.backends.rules import Rule
from phipipe.errors import StepFailed
from phipipe.models.staging import copy_beside
from phipipe.steps import Step

if TYPE_CHECKING:
    from phipipe.backends.base import Runtime
    from phipipe.backends.qnn.graph import Shape
    from phipipe.backends.qnn.weights import Weights
    from phipipe.models.checkpoints import Checkpoint
    from phipipe.recipe.recipe import Precision, Recipe
    from phipipe.steps import Inputs, Params

TOOLCHAIN = "qnn"
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.qnn:convert",
    "quantize": "phipipe.backends.qnn:quantize",
    "compile": "phipipe.backends.qnn:compile",
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
CONFIG = "genai_config.json"
PART_BYTES = (
    2**30
)  # of weights in one binary: the HTP addresses 32 bits, and needs room for what it computes
# Larger models are scored in fixed point on the CPU, and emulated for one prompt and a few tokens:
# emulated, a billion parameters take two cores about 2 min for 64 tokens of a prompt, 30 s for one
# of an answer. Both ways gave the same divergence within 2 % (hidden size 3072).
EMULATED_PARAMETERS = 2 * 10**8


class Options(BaseModel):
    """What is fixed when the graphs are compiled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    soc: Literal["x-elite", "x2-elite", "8-gen-3", "8-elite"] = Field(
        default="x-elite", description="The Snapdragon chip that the contexts are compiled for."
    )
    prompt_length: Literal[32, 64, 128, 256] = Field(
        default=64,
        description="Tokens of a prompt that are read at once; the graph's fixed length.",
    )
    context_length: int = Field(
        default=512,
        ge=64,
        le=8192,
        strict=True,
        description="Positions of the cache: prompt and answer together.",
    )
    keep_8bit: list[str] = Field(
        default=["lm_head", "down_proj"],
        description="int4: linears that stay at 8 bits, as parts of their names.",
    )
    rotate: Literal["quarot", "spinquant"] | None = Field(
        default=None,
        description="Olive turns the weights in their space before they are rounded, so that "
        "none stands out; the "
        "model computes the same. quarot: by fixed (Hadamard) rotations. spinquant: by "
        "rotations that are learned "
        "from the calibration text.",
    )
    parts: int | None = Field(
        default=None,
        ge=1,
        strict=True,
        description="Graphs that the layers are split into. Default: as few as keep each within "
        "1 GiB at 8 bits.",
    )


RULES = (
    Rule(
        id="Q01",
        level="error",
        when=lambda r, o, c: c.model_type != "phi3",
        message="`qnn` builds its graphs for phi3 models; `{checkpoint.architecture}` is another",
        hint="use a dense Phi-3 or Phi-4, or another backend on the device's CPU",
    ),
    Rule(
        id="Q02",
        level="error",
        when=lambda r, o, c: o.context_length > c.context_length,
        message="`quantize.context_length: {options.context_length}` is beyond the model's "
        "{checkpoint.context_length}",
        hint="set `quantize.context_length` to that or less",
    ),
    Rule(
        id="Q05",
        level="error",
        when=lambda r, o, c: (
            o.context_length < 2 * o.prompt_length or o.context_length % o.prompt_length != 0
        ),
        message="`quantize.context_length: {options.context_length}` is not a multiple, two at "
        "least, of "
        "`prompt_length: {options.prompt_length}`",
        hint="set `quantize.context_length: 512`, say",
    ),
    Rule(
        id="Q06",
        level="error",
        when=lambda r, o, c: r.evaluate.window > o.context_length,
        message="`evaluate.window: {recipe.evaluate.window}` is beyond `quantize.context_length: "
        "{options.context_length}`",
        hint="make the window smaller, or the context longer",
    ),
    Rule(
        id="Q07",
        level="warning",
        when=lambda r, o, c: r.precision == "int8" and "keep_8bit" in o.model_fields_set,
        message="`quantize.keep_8bit` is set, but int8 keeps everything at 8 bits",
        hint="take `quantize.keep_8bit` out",
    ),
    Rule(
        id="Q08",
        level="error",
        when=lambda r, o, c: r.calibrate.window < o.prompt_length + 16,
        message="`calibrate.window: {recipe.calibrate.window}` is too short for prompts of "
        "{options.prompt_length}",
        hint="set `calibrate.window: 512`",
    ),
    Rule(
        id="Q11",
        level="error",
        when=lambda r, o, c: (
            c.longrope
            and (o.context_length > c.original_context_length)
            != (r.evaluate.window > c.original_context_length)
        ),
        message="the graphs hold one set of LongRoPE factors, chosen by `quantize.context_length: "
        "{options.context_length}`: with windows of {recipe.evaluate.window} tokens the "
        "original takes the other",
        hint="keep both within {checkpoint.original_context_length} tokens",
    ),
    Rule(
        id="Q12",
        level="error",
        when=lambda r, o, c: c.cuts and o.context_length > (c.sliding_window or 0),
        message="the graphs have no sliding window, and the model's is "
        "{checkpoint.sliding_window} tokens: with a "
        "longer cache it would differ from the original",
        hint="set `quantize.context_length` to that or less",
    ),
    Rule(
        id="Q09",
        level="error",
        when=lambda r, o, c: (o.parts or 1) > c.layers,
        message="`quantize.parts: {options.parts}` is more than the model's {checkpoint.layers} "
        "layers",
        hint="leave `quantize.parts` out",
    ),
    Rule(
        id="Q10",
        level="warning",
        when=lambda r, o, c: c.parameters > EMULATED_PARAMETERS,
        message="a model of this size takes an emulated NPU hours: it is scored in fixed point "
        "on the CPU, and "
        "emulated for one prompt and two tokens",
        hint="nothing is wrong; what the device itself does, only the device can tell",
    ),
)


def layer_bytes(checkpoint: Checkpoint, bits: int, kept: Sequence[str]) -> int:
    """Bytes of one layer's linears at ``bits``, those whose name contains a part of ``kept`` at
    8."""
    c = checkpoint
    heads, groups, inner = c.heads * c.head_size, c.kv_heads * c.head_size, c.intermediate_size
    outputs = {"self_attn.q_proj": heads, "self_attn.k_proj": groups, "self_attn.v_proj": groups}
    outputs |= {
        "self_attn.o_proj": heads,
        "mlp.gate_proj": inner,
        "mlp.up_proj": inner,
        "mlp.down_proj": inner,
    }
    widths = {
        name: 8 if any(part in f"{name}.weight" for part in kept) else bits for name in outputs
    }
    return sum(widths[name] * count * c.hidden_size // 8 for name, count in outputs.items())


def parts_of(checkpoint: Checkpoint) -> int:
    """As few parts as keep the weights of each within ``PART_BYTES``; a single layer is never
    split.

    Counted at 8 bits in any precision, so that all start from the same float graphs.
    """
    most = max(1, PART_BYTES // layer_bytes(checkpoint, 8, []))
    return -(-checkpoint.layers // most)


def steps(job: Job[Options]) -> list[Step]:
    """``convert`` (float), ``quantize`` (calibrated), ``compile-apart`` to be emulated, ``compile``
    to be shipped.

    With ``options.rotate`` a step ``rotate`` comes first. Large models are scored after
    ``quantize``.
    """
    from phipipe.algorithms import olive

    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    bits = 8 if recipe.precision == "int8" else 4
    kept = options.keep_8bit if bits == 4 else []
    parts = options.parts or parts_of(checkpoint)
    shape = {
        "prompt_length": options.prompt_length,
        "context_length": options.context_length,
        "parts": parts,
    }
    sizes = _sizes(recipe, options, checkpoint, bits, parts)
    small = checkpoint.parameters <= EMULATED_PARAMETERS
    common: dict[str, Any] = {"toolchain": TOOLCHAIN, "version": 2}
    before = olive.rotations(options.rotate, recipe, checkpoint)
    convert_step = Step(
        name="convert",
        runs="qnn/convert",
        needs={"source": before[-1].name if before else "source"},
        params={"config_patch": dict(job.patch), **shape},
        unquantized="fp32",
        output_bytes=sizes["float"],
        memory_bytes=sizes["tensor"] * 3 + 2**29,
        **common,
    )
    quantize_step = Step(
        name="quantize",
        runs="qnn/quantize",
        needs={"model": "convert", "calibration": "calibration"},
        params={"bits": bits, "keep_8bit": sorted(kept)},
        twin=not small,
        output_bytes=sizes["fixed"],
        memory_bytes=2 * sizes["tensor"]
        + sizes["border"]
        + 4 * sizes["caches"]
        + sizes["mapped"] * 3 // 2
        + 2**29,
        **common,
    )
    compiled = [
        Step(
            name=name,
            runs="qnn/compile",
            needs={"model": "quantize"},
            params={"soc": dict(SOCS[options.soc]), "shared": shared},
            twin=small and not shared,
            tried=not shared,
            output_bytes=sizes["fixed"] if shared else 2 * sizes["fixed"] - sizes["embedding"],
            memory_bytes=8 * sizes["part"] + 2**30,
            **common,
        )
        for name, shared in (("compile-apart", False), ("compile", True))
    ]
    return [*before, convert_step, quantize_step, *compiled]


def _sizes(
    recipe: Recipe, options: Options, checkpoint: Checkpoint, bits: int, parts: int
) -> dict[str, int]:
    """Bytes of: the graphs in "float" and in "fixed" point, and of those the "embedding" and the
    largest "part"; the largest "tensor" in float; in calibration, what passes the "border" between
    parts, the "caches" of one part, and its weights, "mapped" from its file."""
    c, kept = checkpoint, options.keep_8bit if bits == 4 else []
    table, longest = c.vocab_size * c.hidden_size, -(-c.layers // parts)
    head = table * (8 if bits == 8 or any(part in "lm_head.weight" for part in kept) else 4) // 8
    layer = layer_bytes(c, bits, kept)
    return {
        "float": 4 * (c.parameters + (table if c.tied else 0)) + 2**20,
        "fixed": 4 * table + head + c.layers * layer + 2**20,
        "embedding": 4 * table,
        "part": max(head, longest * layer),
        "tensor": 4 * max(table, 2 * c.intermediate_size * c.hidden_size),
        "border": 4 * recipe.calibrate.tokens * c.hidden_size,
        "caches": 4 * longest * 2 * c.kv_heads * c.head_size * options.context_length,
        "mapped": max(4 * table, longest * layer_bytes(c, 32, [])),
    }


def scheme(job: Job[Options]) -> str:
    """Bits of weights and activations, and what is exceptional."""
    recipe, options = job.recipe, job.options
    words = _SCHEMES[recipe.precision]
    kept = (
        f", {' and '.join(options.keep_8bit)} at 8 bits"
        if recipe.precision == "int4" and options.keep_8bit
        else ""
    )
    return f"{words}{kept}, 8-bit caches{', rotated' if options.rotate else ''}"


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to static graphs in fp32, the layers in
    ``params["parts"]`` parts.

    Writes embedding.onnx, decoder_0_prompt.onnx, decoder_0_token.onnx (and so on for each part),
    head_prompt.onnx, head_token.onnx, a .data file for each part, static.json, genai_config.json
    and the tokenizer's files.
    """
    import json

    from phipipe.backends.qnn import graph as static_graph
    from phipipe.backends.qnn.weights import Weights
    from phipipe.models import checkpoints, tokenizer_files

    source = inputs["source"]
    config = json.loads((source / "config.json").read_text("utf-8")) | params["config_patch"]
    lengths = {"prompt": params["prompt_length"], "token": 1}
    shapes = {
        kind: static_graph.shape_of(config, length, params["context_length"])
        for kind, length in lengths.items()
    }
    shape = shapes["prompt"]
    generation = source / "generation_config.json"
    told = json.loads(generation.read_text("utf-8")) if generation.is_file() else {}
    ends = told.get("eos_token_id") or config["eos_token_id"]
    facts = {
        name: getattr(shape, name)
        for name in ("layers", "hidden", "heads", "kv_heads", "head_size")
    }
    facts |= {
        "prompt_length": shape.length,
        "context_length": shape.context,
        "parts": params["parts"],
    }
    facts |= {
        "ends": tokenizer_files.end_ids(ends),
        "caches": "float32",
        "soc": None,
        "shared": False,
    }
    facts |= {"begin": config.get("bos_token_id"), "pad": config.get("pad_token_id")}
    facts |= {"vocabulary": config["vocab_size"]}
    _write_graphs(out, shapes, Weights(source), facts)
    names = checkpoints.loose_files(source)
    copy_beside(source, out, names, leave=lambda name: name == "config.json")
    _describe(out, facts)


def _write_graphs(
    out: Path, shapes: Mapping[str, Shape], weights: Weights, facts: Mapping[str, Any]
) -> None:
    """The float graphs of every stage, for each length of ``shapes``, and the embedding; tensor by
    tensor."""
    import onnx

    from phipipe.backends.qnn import graph as static_graph
    from phipipe.backends.qnn import session as static_session
    from phipipe.backends.qnn.weights import DataFile

    for stage, layers in static_session.stages(facts).items():
        with DataFile(out / static_session.data_of(stage)) as data:
            for kind, shape in shapes.items():
                made = (
                    static_graph.decoder(shape, weights, layers, data)
                    if layers
                    else static_graph.head(shape, weights, data)
                )
                onnx.save(made, str(out / static_session.name_of(stage, kind)))
    with DataFile(out / static_session.data_of("embedding")) as data:
        onnx.save(static_graph.embedding(weights, data), str(out / static_session.EMBEDDING))


def _describe(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``static.json``, and the pipeline as ONNX Runtime GenAI reads it."""
    import json

    from phipipe.backends.qnn import pipeline
    from phipipe.backends.qnn import session as static_session

    (folder / static_session.FACTS).write_text(
        json.dumps(facts, indent=2, sort_keys=True) + "\n", "utf-8"
    )
    (folder / CONFIG).write_text(json.dumps(pipeline.config(facts), indent=2) + "\n", "utf-8")


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the graphs of ``inputs["model"]`` in fixed point, with ranges from
    ``inputs["calibration"]``'s tokens.

    Linears get ``params["bits"]`` bits, those whose name contains a part of ``params["keep_8bit"]``
    8. One stage is read, calibrated and written at a time.

    Raises:
        StepFailed: the calibration is too short, or a linear is not stored as asked.
    """
    import numpy as np

    from phipipe.backends.qnn import calibration, fixed_point
    from phipipe.backends.qnn import session as static_session
    from phipipe.backends.qnn.weights import DataFile

    source = inputs["model"]
    reading = calibration.Reading(
        source, np.load(inputs["calibration"] / "tokens.npy", allow_pickle=False)
    )
    for stage, layers in static_session.stages(reading.facts).items():
        seen = reading.through(stage)
        caches = calibration.cache_scales(seen, layers)
        with DataFile(out / static_session.data_of(stage)) as data:
            for kind in static_session.LENGTHS:
                name = static_session.name_of(stage, kind)
                bits = _bits(source / name, params)
                fixed_point.quantize(source / name, out / name, data, seen[kind], bits, caches)
                fixed_point.verify(out / name, bits, caches)
    _copy_rest(source, out)
    _describe(out, reading.facts | {"caches": "uint8"})


def _bits(graph: Path, params: Params) -> dict[str, int]:
    """Constant of a linear → its bits.

    Raises:
        StepFailed: a part of ``keep_8bit`` is in no linear's name.
    """
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    read = (node.input[1] for node in model.graph.node if node.op_type == "MatMul")
    names = sorted(name for name in read if name in constants)
    return {
        name: 8 if any(part in name for part in params["keep_8bit"]) else params["bits"]
        for name in names
    }


def _copy_rest(source: Path, out: Path) -> None:
    """The files that no step changes: the embedding, the tokenizer's, the licence."""
    from phipipe.backends.qnn import session as static_session

    weights = {
        static_session.data_of(stage)
        for stage in static_session.stages(static_session.facts_of(source))
    }
    copy_beside(source, out, leave=lambda name: name in weights or (out / name).exists())


def compile(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the graphs of ``inputs["model"]`` as contexts for ``params["soc"]``, each whole on the
    NPU.

    With ``params["shared"]`` the graphs for prompts and for single tokens share one binary and its
    weights.

    Raises:
        StepFailed: a graph falls apart into several partitions, or the compiler refuses it.
    """
    from phipipe.backends.qnn import session as static_session

    source, soc, shared = inputs["model"], params["soc"], params["shared"]
    facts = static_session.facts_of(source)
    for stage in static_session.stages(facts):
        sessions = []  # all of one binary stay open until it is written
        for kind in static_session.LENGTHS:
            name = static_session.name_of(stage, kind)
            entries = {
                "ep.context_enable": "1",
                "ep.context_embed_mode": "0",
                "ep.context_file_path": str(out / name),
            }
            if shared:
                entries["ep.share_ep_contexts"] = "1"
                entries |= (
                    {"ep.stop_share_ep_contexts": "1"} if kind == static_session.LENGTHS[-1] else {}
                )
            settings = {"enable_htp_weight_sharing": "1"} if shared else {}
            sessions.append(static_session.htp(source / name, soc, entries, settings))
            _check_context(out / name)
        del sessions
    _copy_rest(source, out)
    _describe(out, facts | {"soc": dict(soc), "shared": shared})


def _check_context(path: Path) -> None:
    """One context holds the whole graph, and its binary is there.

    Raises:
        StepFailed: names the operators that are not in it.
    """
    import onnx

    if not path.is_file():
        raise StepFailed(f"onnxruntime-qnn wrote no `{path.name}`")
    nodes = list(onnx.load(str(path), load_external_data=False).graph.node)
    outside = sorted({node.op_type for node in nodes if node.op_type != "EPContext"})
    if outside or len(nodes) != 1:
        raise StepFailed(
            f"`{path.name}` fell apart into {len(nodes)} nodes; not on the NPU: "
            f"{', '.join(outside)}"
        )


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Graphs on the CPU, or compiled ones on the HTP or its emulator; "hexagon" insists on the
    NPU."""
    from phipipe.backends.qnn import session as static_session

    if api == "hexagon" and static_session.emulated():
        from phipipe.backends.base import absent

        raise absent("Hexagon NPU", "onnxruntime-qnn")
    return static_session.Session(artifact)


FACE = Backend(
    title="Qualcomm QNN (ONNX Runtime GenAI)",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions={"hexagon": _SCHEMES},
    systems=frozenset({"windows", "android"}),
    host_apis=frozenset(),
    emulated={"hexagon": "evaluate/check_decode"},
    cache_bytes={"hexagon": 1},
    files=(CONFIG, "static.json", "*.onnx", "*.data", "*.bin"),
    has_contexts=True,
    steps=steps,
    scheme=scheme,
    context_length=lambda job: job.options.context_length,
    rules=RULES,
    is_uniform=lambda o: not o.keep_8bit,
    wider="leave `quantize.keep_8bit` as it is by default",
    finer=(Finer(options={"keep_8bit": ["lm_head", "down_proj", "o_proj"]}, told="o_proj"),),
    open=open,
    tokenizer=genai.tokenizer,
    rank=3,
    colour=6,
)
