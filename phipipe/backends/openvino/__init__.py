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

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from phipipe.backends import group_rules
from phipipe.backends.base import Backend, Finer, Job, Runtime, Tokenizer
from phipipe.backends.rules import Rule
from phipipe.errors import StepFailed
from phipipe.models import seeing
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params, Step

if TYPE_CHECKING:
    from phipipe.models.checkpoints import Checkpoint
    from phipipe.recipe.recipe import Precision, Recipe

Change = Callable[[Any], Any]  # of an openvino.Model

TOOLCHAIN = "openvino"
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.openvino:convert",
    "quantize": "phipipe.backends.openvino:quantize",
    "vision": "phipipe.backends.openvino.vision:eyes",
    "verify_npu": "phipipe.backends.openvino:verify_npu",
}
_SCHEMES: Mapping[Precision, str] = {
    "fp32": "f32",
    "fp16": "f16",
    "int8": "int8 per row",
    "int4": "int4 in groups",
}
QUANTIZED = ("int8", "int4")
ALGORITHMS = {"awq": "AWQ", "scale_estimation": "scale estimation", "gptq": "GPTQ"}
PIPELINE = ("prompt_length", "response_length")  # options of verify_npu; they change no weight
MODEL = "openvino_model.xml"
TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
# Anonymous memory: the largest RssAnon of 20 samples a second (Linux x86-64), Phi-3.5-mini's shape:
# converting 0.79 to 0.95 GB, int4 in the same process 1.62 GB (alone 1.19): NNCF copies the largest
# matrix, embedding or head. Both at once, as for large models: 1.80 GB; Phi-4's shape: 6.93 GB.
CONVERSION_BYTES = 870_000_000
QUANTIZATION_BYTES, DIRECT_BYTES = 740_000_000, 580_000_000
WORKING_BYTES, DIRECT_WORKING_BYTES = 9, 12.4  # per value of that matrix
NPU_PROMPT = "Tell me a short story about a fox."
NPU_TOKENS = 32
# Between two tokens that are almost equally likely, rounding decides; 0.01 was measured, a broken
# pipeline is nats off.
NPU_GAP_NATS = 0.2


class Options(BaseModel):
    """How weights are rounded. int8 takes `symmetric` only; fp16 and fp32 take none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    symmetric: bool = Field(
        default=False,
        strict=True,
        description="Rounding around zero. Off: a zero point per group, for skewed weights; "
        "more accurate.",
    )
    group_size: Literal[-1, 32, 64, 128, 256] = Field(
        default=128,
        description="4-bit weights that share one scale; -1: a whole row. Smaller is more "
        "accurate and larger.",
    )
    ratio: float = Field(
        default=1.0,
        gt=0,
        le=1,
        strict=True,
        description="Share of the weights that get 4 bits; the most sensitive layers of the "
        "rest are stored as "
        "`backup` says. Embeddings and LM head do not count.",
    )
    backup: Literal["none", "int8_sym", "int8_asym"] = Field(
        default="int8_asym",
        description="How embeddings, LM head and the layers outside of `ratio` are stored; "
        "none: in 16 bits.",
    )
    all_layers: bool = Field(
        default=False,
        strict=True,
        description="Embeddings and LM head get 4 bits too, and count for `ratio`.",
    )
    awq: bool = Field(
        default=False,
        strict=True,
        description="Move scale from salient weights to their inputs (activation-aware). Reads "
        "`calibrate.text`.",
    )
    scale_estimation: bool = Field(
        default=False,
        strict=True,
        description="Choose scales by the layers' outputs rather than by their weights. Reads "
        "`calibrate.text`.",
    )
    gptq: bool = Field(
        default=False,
        strict=True,
        description="Round column by column, each correcting the errors so far; slow. Reads "
        "`calibrate.text`.",
    )
    sensitivity: Literal[
        "weight_quantization_error",
        "hessian_input_activation",
        "mean_activation_variance",
        "max_activation_variance",
        "mean_activation_magnitude",
    ] = Field(
        default="weight_quantization_error",
        description="How `ratio` below 1 ranks layers. All but weight_quantization_error read "
        "`calibrate.text`.",
    )
    prompt_length: int = Field(
        default=1024,
        ge=64,
        le=131_072,
        strict=True,
        description="NPU: the longest prompt, in tokens.",
    )
    response_length: int = Field(
        default=128,
        ge=32,
        le=131_072,
        strict=True,
        description="NPU: room for this many tokens of answer.",
    )

    @property
    def learns(self) -> bool:
        """Whether the calibration text is read."""
        return (
            self.awq
            or self.scale_estimation
            or self.gptq
            or self.sensitivity != "weight_quantization_error"
        )


def _stray(recipe: Recipe, options: Options) -> list[str]:
    """Options set for a precision that has no use for them."""
    if recipe.precision == "int4":
        return []
    return sorted(
        options.model_fields_set - ({"symmetric"} if recipe.precision == "int8" else set())
    )


RULES: tuple[Rule, ...] = (
    Rule(
        id="V14",
        level="error",
        when=lambda r, o, c: (
            r.precision == "int4" and o.ratio == 1 and "sensitivity" in o.model_fields_set
        ),
        message="`quantize.sensitivity` ranks layers for a `ratio` below 1, and `ratio` is 1",
        hint="remove it, or set `quantize.ratio`",
    ),
    Rule(
        id="V12",
        level="error",
        when=lambda r, o, c: (
            bool(o.model_fields_set.intersection(PIPELINE))
            and o.prompt_length + o.response_length > c.context_length
        ),
        message="`quantize.prompt_length` and `response_length` together are longer than the "
        "model's context "
        "({checkpoint.context_length} tokens)",
        hint="make one of the two shorter",
    ),
    Rule(
        id="M12",
        level="warning",
        when=lambda r, o, c: c.longrope and c.context_length > c.original_context_length,
        message="a chat that grows past {checkpoint.original_context_length} tokens loses "
        "accuracy from there on: "
        "openvino-genai keeps what it computed with the model's other rotary factors",
        hint="prompts that are longer from the start are right",
    ),
    Rule(
        id="V02",
        level="error",
        when=lambda r, o, c: bool(_stray(r, o)),
        message="`quantize.{option}` is set, but {recipe.precision} {takes}",
        hint="remove it, or choose int4",
        words=lambda r, o, c: {
            "option": _stray(r, o)[0],
            "takes": "takes `symmetric` only" if r.precision == "int8" else "quantizes nothing",
        },
    ),
    group_rules.rule("V13", ("int4",), (32, 64, 128, 256)),
)


def context_length(job: Job[Options]) -> int | None:
    """An NPU's cache has room for the longest prompt and the answer; elsewhere it grows as it is
    used."""
    options = job.options
    return options.prompt_length + options.response_length if job.api == "intel-npu" else None


def scheme(job: Job[Options]) -> str:
    """Bits, symmetry, groups, and what is exceptional: "int4 asymmetric, groups of 128"."""
    recipe, options = job.recipe, job.options
    if recipe.precision not in QUANTIZED:
        return _SCHEMES[recipe.precision]
    words = [f"{recipe.precision} {'symmetric' if options.symmetric else 'asymmetric'}"]
    if recipe.precision == "int4":
        words.append(
            "a scale per row" if options.group_size == -1 else f"groups of {options.group_size}"
        )
        words += [f"{options.ratio:.0%} of the weights"] if options.ratio < 1 else []
        words += ["all layers"] if options.all_layers else []
        words += [title for name, title in ALGORITHMS.items() if getattr(options, name)]
    return ", ".join(words)


def steps(job: Job[Options]) -> list[Step]:
    """``convert`` to 16 bits, shared by fp16, int8 and int4 (fp32 has its own); ``quantize`` for
    the last two.

    A large model is not written out in 16 bits first: ``quantize`` then converts it too, and rounds
    each matrix as it lies in the checkpoint. Tracing it again for another variant takes less time
    than writing it and reading it back.
    """
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    width: Precision = "fp32" if recipe.precision == "fp32" else "fp16"
    parameters, size = checkpoint.parameters, 4 if width == "fp32" else 2
    cast = size != 2 or checkpoint.weight_bytes != 2 * parameters
    convert_step = Step(
        name="convert",
        runs="openvino/convert",
        version=1,
        needs={"source": "source"},
        params={"precision": width, "config_patch": dict(job.patch)},
        unquantized=width,
        toolchain=TOOLCHAIN,
        output_bytes=size * parameters,
        memory_bytes=CONVERSION_BYTES + (size * parameters if cast else 0),
    )
    if recipe.precision not in QUANTIZED:
        return [convert_step]
    bits = 4 if recipe.precision == "int4" else 8
    four = options.model_dump(mode="json", exclude=set(PIPELINE))
    chosen = four if bits == 4 else {"symmetric": options.symmetric}
    made = _stored_bytes(options, checkpoint, bits)
    learns = bits == 4 and options.learns
    direct = checkpoint.large and not learns
    largest = checkpoint.vocab_size * checkpoint.hidden_size
    memory = QUANTIZATION_BYTES + WORKING_BYTES * largest
    if direct:
        memory = int(DIRECT_BYTES + DIRECT_WORKING_BYTES * largest) + (
            size * parameters if cast else 0
        )
    needs = {"source": "source"} if direct else {"model": "convert"}
    if learns:
        needs["calibration"] = "calibration"
        memory += made + 2 * parameters + 4 * recipe.calibrate.tokens * checkpoint.intermediate_size
    quantize_step = Step(
        name="quantize",
        runs="openvino/quantize",
        version=1,
        needs=needs,
        params={"bits": bits, **chosen, **({"config_patch": dict(job.patch)} if direct else {})},
        toolchain=TOOLCHAIN,
        output_bytes=made,
        memory_bytes=memory,
        loaded_bytes=made
        + (
            parameters if bits == 4 and options.group_size == -1 else made // 4
        ),  # CPUs widen -1 to 8
    )
    return [quantize_step] if direct else [convert_step, quantize_step]


def _stored_bytes(options: Options, checkpoint: Checkpoint, bits: int) -> int:
    """What the weights take at 8 bits, or at 4 but for embeddings, LM head and what is outside of
    ``ratio``."""
    if bits == 8:
        return checkpoint.parameters
    ends = checkpoint.vocab_size * checkpoint.hidden_size * (1 if checkpoint.tied else 2)
    ranked = checkpoint.parameters - (0 if options.all_layers else ends)
    group = options.group_size if options.group_size > 0 else checkpoint.hidden_size
    four_bits = int(options.ratio * ranked)
    scale_bits = 16 if options.symmetric else 20  # with a zero point of 4 bits
    rest = (checkpoint.parameters - four_bits) * (2 if options.backup == "none" else 1)
    return four_bits // 2 + four_bits * scale_bits // (8 * group) + rest


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to an IR with weights in ``params["precision"]``,
    and its tokenizer.

    Raises:
        StepFailed: optimum left something incomplete or quantized.
    """
    from phipipe.backends.openvino import graph, session

    precision: Precision = params["precision"]
    _convert(inputs["source"], out, precision, params["config_patch"])
    if precision != "fp32":
        graph.to_fp16(out / MODEL)
    session.verify_unquantized(session.weights(_check(out)), _SCHEMES[precision])


def _convert(
    source: Path, out: Path, precision: str, patch: Params, change: Change | None = None
) -> None:
    """Export the checkpoint with the files that ship beside it; ``change`` has the graph before it
    is written."""
    import tempfile

    from phipipe.backends.openvino import graph, session
    from phipipe.models import checkpoints
    from phipipe.models.staging import staged

    session.quiet()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        source = staged(source, patch, Path(scratch) / "model")
        with graph.one_thread(), _changed(change):
            _export(source, out, precision)
        # transformers 5 rewrites them in a layout that other tools misread
        copy_beside(source, out, checkpoints.loose_files(source))
    for path in sorted(out.glob("*.xml")):
        graph.number_nodes(path)


@contextlib.contextmanager
def _changed(change: Change | None) -> Iterator[None]:
    """Have optimum write what ``change`` makes of the model's graph; the tokenizer's are left as
    they are."""
    from unittest.mock import patch

    from optimum.exporters.openvino import convert as exporter

    save = exporter.save_model

    def changed(model: Any, path: Any, compress_to_fp16: bool = True) -> None:
        save(
            change(model) if change and Path(path).name == MODEL else model, path, compress_to_fp16
        )

    with patch.object(exporter, save.__name__, changed):
        yield


def _export(source: Path, out: Path, precision: str) -> None:
    """Run optimum in this process; a checkpoint in bf16 leaves a graph in bf16 where fp16 was asked
    for.

    ``dtype`` "auto" leaves alone what the 16-bit linears do not cover; no dtype at all means int8
    above 1 G weights. Weights that are loaded in the dtype they are stored in stay in the
    checkpoint's files, which the graph shares: cast, the whole model would lie in memory.
    """
    import torch
    from optimum.exporters.openvino.__main__ import main_export
    from optimum.intel.openvino.configuration import OVConfig

    from phipipe.models import tensors

    stored = torch.bfloat16 if tensors.dtypes(source) == {"BF16"} else torch.float16
    main_export(
        str(source),
        output=out,
        task="text-generation-with-past",
        framework="pt",
        library_name="transformers",
        ov_config=OVConfig(dtype="fp32" if precision == "fp32" else "auto"),
        model_loading_kwargs={"torch_dtype": torch.float32 if precision == "fp32" else stored},
        convert_tokenizer=True,
        local_files_only=True,
        trust_remote_code=False,
        stateful=True,
    )


def _check(folder: Path) -> Any:
    """Its graph; the folder is complete, and the graph keeps a cache of its own and computes in no
    bf16."""
    from phipipe.backends.openvino import session

    for name in (MODEL, *TOKENIZERS, "config.json", "generation_config.json"):
        if not (folder / name).is_file():
            raise StepFailed(f"optimum wrote no `{name}`")
    model = session.read(folder)
    taken = {name for port in model.inputs for name in port.get_names()}
    if (
        taken != {"input_ids", "attention_mask", "position_ids", "beam_idx"}
        or not model.get_sinks()
    ):
        raise StepFailed(
            f"the converted graph has unexpected inputs, or no cache: {', '.join(sorted(taken))}"
        )
    if any(
        port.get_element_type().get_type_name() == "bf16"
        for node in model.get_ops()
        for port in node.outputs()
    ):
        raise StepFailed("the converted graph computes in bf16")
    return model


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, with its weights at ``params["bits"]``
    bits.

    With ``inputs["source"]``, a checkpoint, in its place, it is converted here, with
    ``params["config_patch"]``. ``params`` holds the options besides. The graph is read back and
    checked before the step counts as done.

    Raises:
        StepFailed: NNCF did something else than asked.
    """
    from phipipe.backends.openvino import compress, graph, session

    session.quiet()
    before: list[session.Weight] = []

    def compressed(model: Any) -> Any:
        before.extend(session.weights(model))
        return compress.compress(model, params, inputs.get("calibration"))

    with compress.lean(out.parent):
        if "source" in inputs:
            _convert(inputs["source"], out, "fp16", params["config_patch"], compressed)
        else:
            _quantize_converted(inputs["model"], out, compressed)
    graph.to_fp16(out / MODEL)
    _check(out)
    before = [
        replace(weight, kind="f16") for weight in before
    ]  # bf16 in a graph that was never written
    session.verify(before, session.weights(session.read(out)), params)


def _quantize_converted(source: Path, out: Path, change: Change) -> None:
    """Write the graph of folder ``source`` as ``change`` leaves it, and copy the other files."""
    import openvino

    from phipipe.backends.openvino import graph, session

    openvino.save_model(change(session.read(source)), str(out / MODEL), compress_to_fp16=False)
    graph.number_nodes(out / MODEL)
    copy_beside(source, out, leave=lambda name: Path(name).stem == Path(MODEL).stem)


def verify_npu(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the NPU's own pipeline, run on this CPU, answers with the tokens that the graph finds
    likeliest.

    Its static shapes, its cutting of the graph and its handling of the cache are thus tried, not
    its arithmetic. ``inputs``: artifact. ``params``: prompt_length, response_length. Writes
    ``npu.json``.

    Raises:
        StepFailed: a token is not (almost) the likeliest after those before it, or the pipeline
            does not start.
    """
    from phipipe.backends.openvino import session

    shape = {
        "MAX_PROMPT_LEN": params["prompt_length"],
        "MIN_RESPONSE_LEN": params["response_length"],
    }
    npu = {"NPU_USE_NPUW": "YES", "NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE", **shape}
    npu |= (
        session.FAITHFUL
    )  # left alone, one pipeline rounds activations to 8 bits and the other does not
    artifact = inputs["artifact"]
    chosen = session.tokenizer(artifact)
    prompt = chosen.encode(chosen.render([{"role": "user", "content": NPU_PROMPT}]))
    count = min(NPU_TOKENS, params["response_length"])
    if len(prompt) > params["prompt_length"]:
        raise StepFailed(
            f"`quantize.prompt_length: {params['prompt_length']}` is too short for a test prompt"
        )
    try:
        theirs = list(session.Pipeline(artifact, "NPU", npu).generate(prompt, count))
    except RuntimeError as error:
        raise StepFailed(f"the NPU's pipeline does not run this model: {error}") from error
    gap = session.furthest(artifact, prompt, theirs)
    report = {
        "pipeline": "NPUW on CPU",
        "prompt_tokens": len(prompt),
        "tokens": len(theirs),
        "gap_nats": gap,
    }
    report |= {"answer": chosen.decode(theirs), **{name: params[name] for name in PIPELINE}}
    (out / "npu.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    if not theirs or gap > NPU_GAP_NATS:
        raise StepFailed(
            f"the NPU's pipeline gives a token that is {gap:.2f} nats less likely than the "
            f"likeliest"
        )


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """The graph on the CPU in fp32 arithmetic, so that figures show what the stored values cost; or
    on GPU or NPU."""
    from phipipe.backends.openvino import session, vision_session

    if api == "intel-npu":
        import openvino

        from phipipe.backends.base import absent

        if "NPU" not in openvino.Core().available_devices:
            raise absent("Intel NPU", "OpenVINO")
        chosen = json.loads((artifact / "manifest.json").read_text("utf-8"))["recipe"]["quantize"]
        lengths = {
            "MAX_PROMPT_LEN": chosen["prompt_length"],
            "MIN_RESPONSE_LEN": chosen["response_length"],
        }
        return session.Pipeline(artifact, "NPU", lengths)
    sees = (artifact / session.LANGUAGE).is_file()
    return vision_session.Session(artifact, api) if sees else session.Session(artifact, api)


def tokenizer(artifact: Path) -> Tokenizer:
    """The tokenizer graphs that ship in the folder, as openvino-genai reads them."""
    from phipipe.backends.openvino import session

    return session.tokenizer(artifact)


FACE = Backend(
    title="OpenVINO (NNCF)",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions={
        "cpu": _SCHEMES,
        "intel-gpu": {name: words for name, words in _SCHEMES.items() if name != "fp32"},
        "intel-npu": {"int4": _SCHEMES["int4"]},
    },
    systems=frozenset({"linux", "windows", "macos"}),
    tokens_only=frozenset({"intel-npu"}),
    emulated={"intel-npu": "openvino/verify_npu"},
    cache_bytes={"cpu": 1, "intel-gpu": 2, "intel-npu": 2},  # the CPU plugin keeps 8 bits
    files=("config.json", "preprocessor_config.json", "openvino_*.xml", "openvino_*.bin"),
    vision=dict.fromkeys((seeing.PHI3, seeing.PHI4), "openvino/vision"),
    # openvino-genai 2026.4 takes the crops of others for as many high as they are wide
    # (VisionEncoderPhi3V::encode gives width for height), so they are padded to squares before.
    square=frozenset({seeing.PHI3}),
    steps=steps,
    scheme=scheme,
    context_length=context_length,
    rules=RULES,
    is_uniform=lambda o: o.ratio == 1,
    wider="set `quantize.ratio: 0.8`, or `precision: int8`",
    finer=(
        Finer(options={"awq": True, "scale_estimation": True}, told="scale estimation"),
        Finer(options={"ratio": 0.8}, told="of the weights", not_on=frozenset({"intel-npu"})),
    ),
    open=open,
    tokenizer=tokenizer,
    rank=2,
    colour=3,
)
