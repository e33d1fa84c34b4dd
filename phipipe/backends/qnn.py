"""Qualcomm NPUs (Snapdragon's HTP): checkpoint → static graphs → calibrated fixed point → a context per graph.

Everything happens on onnxruntime-qnn, whose x86-64 build compiles for any chip and emulates the NPU. What ships are
graphs for prompts and for single tokens that share their weights; the emulator loads only graphs compiled apart, so
those stand in for them when fidelity is measured: same graphs, same bits, same compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from phipipe.errors import StepFailed
from phipipe.rules import Rule, check

if TYPE_CHECKING:
    from phipipe.backends.base import Advice, Inputs, Json, Params, Runtime, Step, Tokenizer
    from phipipe.device import Unit
    from phipipe.models import Checkpoint
    from phipipe.recipe import Precision, Recipe

TITLE = "Qualcomm QNN (ONNX Runtime GenAI)"
TOOLCHAIN = "qnn"
APIS = frozenset({"hexagon"})
SYSTEMS = frozenset({"windows", "android"})
ON_DEVICE: Mapping[str, str] = dict.fromkeys(APIS, TOOLCHAIN)
TOKENS_ONLY: frozenset[str] = frozenset()
CACHE_BYTES: Mapping[str, int] = dict.fromkeys(APIS, 1)
HOST_APIS: frozenset[str] = frozenset()
EMULATED: Mapping[str, str] = {"hexagon": "phipipe.evaluate:check_decode"}
_SCHEMES: Mapping[Precision, str] = {"int8": "w8a16", "int4": "w4a16"}
PRECISIONS: Mapping[str, Mapping[Precision, str]] = {"hexagon": _SCHEMES}
# Qualcomm's numbers of chips: soc_model and the HTP's architecture, as in the QNN headers and onnxruntime-qnn's pages.
SOCS: Mapping[str, Mapping[str, int]] = {
    "x-elite": {"model": 60, "arch": 73},
    "x2-elite": {"model": 87, "arch": 81},
    "8-gen-3": {"model": 57, "arch": 75},
    "8-elite": {"model": 69, "arch": 79},
}
CONFIG = "genai_config.json"


class Options(BaseModel):
    """What is fixed when the graphs are compiled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    soc: Literal["x-elite", "x2-elite", "8-gen-3", "8-elite"] = Field(
        default="x-elite", description="The Snapdragon chip that the contexts are compiled for."
    )
    prompt_length: Literal[32, 64, 128, 256] = Field(
        default=64, description="Tokens of a prompt that are read at once; the graph's fixed length."
    )
    context_length: int = Field(
        default=512, ge=64, le=8192, strict=True, description="Positions of the cache: prompt and answer together."
    )
    keep_8bit: list[str] = Field(
        default=["lm_head", "down_proj"],
        description="int4: linears that stay at 8 bits, as parts of their names.",
    )
    rotate: Literal["quarot", "spinquant"] | None = Field(
        default=None,
        description="Olive turns the weights in their space before they are rounded, so that none stands out; the "
        "model computes the same. quarot: by fixed (Hadamard) rotations. spinquant: by rotations that are learned "
        "from the calibration text.",
    )


RULES = (
    Rule(
        id="Q01",
        level="error",
        when=lambda r, o, c: c.model_type != "phi3",
        message="`qnn` builds its graphs for phi3 models; `{checkpoint.architecture}` is another",
    ),
    Rule(
        id="Q02",
        level="error",
        when=lambda r, o, c: o.context_length > c.context_length,
        message="`quantize.context_length: {options.context_length}` is beyond the model's {checkpoint.context_length}",
    ),
    Rule(
        id="Q05",
        level="error",
        when=lambda r, o, c: o.context_length < 2 * o.prompt_length or o.context_length % o.prompt_length != 0,
        message="`quantize.context_length: {options.context_length}` is not a multiple, two at least, of "
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
    ),
    Rule(
        id="Q08",
        level="error",
        when=lambda r, o, c: r.calibrate.window < o.prompt_length + 16,
        message="`calibrate.window: {recipe.calibrate.window}` is too short for prompts of {options.prompt_length}",
        hint="set `calibrate.window: 512`",
    ),
)


def steps(
    recipe: Recipe,
    options: BaseModel,
    checkpoint: Checkpoint,
    config_patch: Mapping[str, Json],
    unit: Unit | None = None,
) -> list[Step]:
    """``convert`` (float), ``quantize`` (calibrated), ``compile-apart`` to be emulated, ``compile`` to be shipped.

    With ``options.rotate`` a step ``rotate`` comes first.
    """
    from phipipe import olive_passes
    from phipipe.backends.base import Step

    assert isinstance(options, Options)
    parameters = checkpoint.parameters
    lengths = {"prompt_length": options.prompt_length, "context_length": options.context_length}
    bits = 8 if recipe.precision == "int8" else 4
    kept = options.keep_8bit if bits == 4 else []
    common: dict[str, Any] = {"toolchain": TOOLCHAIN, "version": 1}
    before = olive_passes.rotations(options.rotate, recipe, checkpoint)
    convert_step = Step(
        name="convert",
        runs="phipipe.backends.qnn:convert",
        needs={"source": before[-1].name if before else "source"},
        params={"config_patch": dict(config_patch), **lengths},
        unquantized="fp32",
        output_bytes=8 * parameters,
        memory_bytes=12 * parameters + 2**30,
        **common,
    )
    quantize_step = Step(
        name="quantize",
        runs="phipipe.backends.qnn:quantize",
        needs={"model": "convert", "calibration": "calibration"},
        params={"bits": bits, "keep_8bit": sorted(kept)},
        output_bytes=4 * parameters,
        memory_bytes=12 * parameters + 2**31,
        **common,
    )
    compiled = [
        Step(
            name=name,
            runs="phipipe.backends.qnn:compile",
            needs={"model": "quantize"},
            params={"soc": dict(SOCS[options.soc]), "shared": shared},
            twin=not shared,
            output_bytes=bits * parameters // 8 + 4 * checkpoint.vocab_size * checkpoint.hidden_size,
            memory_bytes=4 * parameters + 2**30,
            **common,
        )
        for name, shared in (("compile-apart", False), ("compile", True))
    ]
    return [*before, convert_step, quantize_step, *compiled]


def scheme(recipe: Recipe, options: BaseModel) -> str:
    """Bits of weights and activations, and what is exceptional."""
    assert isinstance(options, Options)
    words = _SCHEMES[recipe.precision]
    kept = f", {' and '.join(options.keep_8bit)} at 8 bits" if recipe.precision == "int4" and options.keep_8bit else ""
    return f"{words}{kept}, 8-bit caches{', rotated' if options.rotate else ''}"


def context_length(options: BaseModel, checkpoint: Checkpoint, api: str) -> int | None:
    """The cache that was compiled."""
    assert isinstance(options, Options)
    return options.context_length


def advise(recipe: Recipe, options: BaseModel, checkpoint: Checkpoint) -> list[Advice]:
    """The rules of this backend."""
    return check(recipe, options, checkpoint, RULES)


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to static graphs in fp32.

    Writes embedding.onnx, decoder_prompt.onnx, decoder_token.onnx, head_prompt.onnx, head_token.onnx, static.json,
    genai_config.json and the tokenizer's files.
    """
    import json
    import shutil

    import onnx

    from phipipe import models, static_graph, static_session

    source = inputs["source"]
    config, weights = static_graph.read(source)
    config |= params["config_patch"]
    lengths = {"prompt": params["prompt_length"], "token": 1}
    shapes = {kind: static_graph.shape_of(config, length, params["context_length"]) for kind, length in lengths.items()}
    for kind, shape in shapes.items():
        onnx.save(static_graph.decoder(shape, weights), str(out / static_session.name_of("decoder", kind)))
        onnx.save(static_graph.head(shape, weights["lm_head.weight"]), str(out / static_session.name_of("head", kind)))
    onnx.save(static_graph.embedding(weights["model.embed_tokens.weight"]), str(out / static_session.EMBEDDING))
    for name in models.files(source):
        if not name.endswith((".safetensors", ".safetensors.index.json")) and name != "config.json":
            shutil.copyfile(source / name, out / name)
    shape = shapes["prompt"]
    generation = source / "generation_config.json"
    told = json.loads(generation.read_text("utf-8")) if generation.is_file() else {}
    ends = told.get("eos_token_id") or config["eos_token_id"]
    facts = {name: getattr(shape, name) for name in ("layers", "hidden", "heads", "kv_heads", "head_size")}
    facts |= {"prompt_length": shape.length, "context_length": shape.context, "vocabulary": config["vocab_size"]}
    facts |= {"ends": ends if isinstance(ends, list) else [ends], "caches": "float32", "soc": None, "shared": False}
    facts |= {"begin": config.get("bos_token_id"), "pad": config.get("pad_token_id")}
    _describe(out, facts)


def _describe(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``static.json``, and the pipeline as ONNX Runtime GenAI reads it."""
    import json

    from phipipe import static_session

    (folder / static_session.FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / CONFIG).write_text(json.dumps(genai_config(facts), indent=2) + "\n", "utf-8")


def genai_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """ONNX Runtime GenAI's ``decoder-pipeline``: embedding on the CPU, decoder and head per phase on the NPU.

    Caches slide: the runtime drops the oldest positions and appends what a graph made. Keys are those of GenAI 0.18.
    """
    from phipipe.static_session import EMBEDDING, name_of

    caches = [f"{kind}_{i}" for i in range(facts["layers"]) for kind in ("key", "value")]
    inputs = ["inputs_embeds", "position_ids", "attention_mask", *(f"past_{name}" for name in caches)]
    outputs = ["hidden_states", *(f"present_{name}" for name in caches)]
    npu = {}
    if soc := facts["soc"]:
        settings = {"backend_path": "QnnHtp.dll", "htp_performance_mode": "burst", "soc_model": str(soc["model"])}
        npu = {"session_options": {"provider_options": [{"qnn": settings}]}}
    stages: list[dict[str, Any]] = [
        {"embedding": {"filename": EMBEDDING, "inputs": ["input_ids"], "outputs": ["inputs_embeds"]}}
    ]
    for part, reads, makes in (("decoder", inputs, outputs), ("head", ["hidden_states"], ["logits"])):
        for kind, other in (("prompt", "token_gen"), ("token", "prompt")):
            stage = {"filename": name_of(part, kind), "inputs": reads, "outputs": makes, f"run_on_{other}": False}
            stages.append({f"{part}_{kind}": stage | npu | ({"is_lm_head": True} if part == "head" else {})})
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "head_size": facts["head_size"],
        "hidden_size": facts["hidden"],
        "num_attention_heads": facts["heads"],
        "num_hidden_layers": facts["layers"],
        "num_key_value_heads": facts["kv_heads"],
        "inputs": {
            "input_ids": "input_ids",
            "inputs_embeds": "inputs_embeds",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_%d",
            "past_value_names": "past_value_%d",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present_key_%d",
            "present_value_names": "present_value_%d",
        },
        "sliding_window": {
            "window_size": facts["prompt_length"],
            "pad_value": 0,
            "alignment": "left",
            "slide_key_value_cache": True,
            "slide_inputs": True,
        },
        "pipeline": stages,
    }
    model = {"type": "decoder-pipeline", "bos_token_id": facts["begin"], "eos_token_id": facts["ends"]}
    model |= {"pad_token_id": facts["pad"] if facts["pad"] is not None else facts["ends"][0]}
    model |= {"vocab_size": facts["vocabulary"], "context_length": facts["context_length"], "decoder": decoder}
    search = {"max_length": facts["context_length"], "do_sample": False, "past_present_share_buffer": False}
    return {"model": model, "search": search}


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the graphs of ``inputs["model"]`` in fixed point, with ranges from ``inputs["calibration"]``'s tokens.

    Linears get ``params["bits"]`` bits, those whose name contains a part of ``params["keep_8bit"]`` 8.

    Raises:
        StepFailed: the calibration is too short, or a linear is not stored as asked.
    """
    import numpy as np

    from phipipe import qnn_graph, static_session

    source = inputs["model"]
    session = static_session.Session(source)
    windows = np.load(inputs["calibration"] / "tokens.npy", allow_pickle=False)
    found = qnn_graph.traces(session, windows)
    facts = session.facts
    session.close()
    ranges = qnn_graph.cache_ranges(found, facts["layers"])
    for part in static_session.PARTS:
        for kind in static_session.LENGTHS:
            name = static_session.name_of(part, kind)
            bits = _bits(source / name, params)
            caches = ranges if part == "decoder" else {}
            qnn_graph.quantize(source / name, out / name, found[kind], bits, caches)
            qnn_graph.verify(out / name, bits, caches)
    _copy_rest(source, out)
    _describe(out, facts | {"caches": "uint8"})


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
    return {name: 8 if any(part in name for part in params["keep_8bit"]) else params["bits"] for name in names}


def _copy_rest(source: Path, out: Path) -> None:
    """The files that no step changes: the embedding, the tokenizer's, the licence."""
    import shutil

    for path in sorted(source.iterdir()):
        if not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)


def compile(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the graphs of ``inputs["model"]`` as contexts for ``params["soc"]``, each whole on the NPU.

    With ``params["shared"]`` the graphs for prompts and for single tokens share one binary and its weights.

    Raises:
        StepFailed: a graph falls apart into several partitions, or the compiler refuses it.
    """
    from phipipe import static_session

    source, soc, shared = inputs["model"], params["soc"], params["shared"]
    for part in static_session.PARTS:
        sessions = []  # all of one binary stay open until it is written
        for kind in static_session.LENGTHS:
            name = static_session.name_of(part, kind)
            entries = {"ep.context_enable": "1", "ep.context_embed_mode": "0", "ep.context_file_path": str(out / name)}
            if shared:
                entries["ep.share_ep_contexts"] = "1"
                entries |= {"ep.stop_share_ep_contexts": "1"} if kind == static_session.LENGTHS[-1] else {}
            settings = {"enable_htp_weight_sharing": "1"} if shared else {}
            sessions.append(static_session.htp(source / name, soc, entries, settings))
            _check_context(out / name)
        del sessions
    facts = static_session.facts_of(source)
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
        raise StepFailed(f"`{path.name}` fell apart into {len(nodes)} nodes; not on the NPU: {', '.join(outside)}")


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Graphs on the CPU, or compiled ones on the HTP or its emulator; "hexagon" insists on the NPU."""
    from phipipe import static_session

    if api == "hexagon" and static_session.emulated():
        from phipipe.backends.base import absent

        raise absent("Hexagon NPU", "onnxruntime-qnn")
    return static_session.Session(artifact)


def tokenizer(artifact: Path) -> Tokenizer:
    """The tokenizer that ships, as onnxruntime-genai reads it."""
    from phipipe import onnx_session

    return onnx_session.GenaiTokenizer(artifact)


if TYPE_CHECKING:
    from phipipe.backends import qnn as _this
    from phipipe.backends.base import Backend

    _: Backend = _this
