"""LiteRT (TensorFlow Lite): checkpoint → float ``.tflite``, once → ai-edge-quantizer, many times →
LiteRT-LM bundle.

Weights are what is quantized; activations stay in fp32 in the file. With ``dynamic`` weights
LiteRT's kernels round each row of activations to 8 bits while they run: on phones too, so fidelity
includes that. The file has two signatures, ``prefill_N`` and ``decode``, and a cache of fixed
length; the bundle holds it with tokenizer and chat template, as LiteRT-LM wants it, and is opened
here by reading the very same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from phipipe.backends.base import Backend, Finer, Job
from phipipe.backends.rules import Fixup, Rule
from phipipe.errors import StepFailed
from phipipe.models.staging import copy_beside
from phipipe.steps import Step

if TYPE_CHECKING:
    from phipipe.backends.base import Runtime, Tokenizer
    from phipipe.models.checkpoints import Checkpoint
    from phipipe.recipe.recipe import Precision, Recipe
    from phipipe.steps import Inputs, Params

TOOLCHAIN = "litert"
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.litert:convert",
    "quantize": "phipipe.backends.litert:quantize",
    "bundle": "phipipe.backends.litert:bundle",
}
_SCHEMES: Mapping[Precision, str] = {
    "fp32": "float32",
    "int8": "int8 per row, dynamic or weight only",
    "int4": "int4 in groups or per row, dynamic or weight only",
}
BITS: Mapping[str, int] = {"int8": 8, "int4": 4}
# A cache of fixed length is taken whole when the model is opened: 2,048 tokens are what a phone can
# spare.
CONTEXT = 2048
PREFILL = 128  # litert-torch's own
GROUP = 32
# transformers' types that were exported here and compared with transformers' logits.
MODEL_TYPES = ("phi3", "phi", "llama", "mistral", "qwen2", "qwen3")


class Options(BaseModel):
    """LiteRT's own knobs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheme: Literal["dynamic", "weight_only"] = Field(
        default="dynamic",
        description="dynamic: integer arithmetic, activations rounded to 8 bits on the fly. "
        "weight_only: weights are "
        "turned into floats before use; closer to the original and several times slower.",
    )
    group_size: Literal[-1, 32, 64, 128] | None = Field(
        default=None,
        description="Weights that share one scale; -1: a whole row. Groups are for dynamic int4 "
        "only. Without it 32 "
        "there, and a whole row elsewhere.",
    )
    prefill_length: int | None = Field(
        default=None, ge=1, description="Prompt tokens that are read at once. Without it 128."
    )
    context_length: int | None = Field(
        default=None,
        ge=1,
        description="Length of the cache, prompt and answer together, which takes its memory "
        "whole at the start. "
        "Without it 2048, or what the model can where that is less.",
    )
    format: Literal["litertlm", "tflite"] = Field(
        default="litertlm",
        description="litertlm: one bundle of model, tokenizer and chat template for LiteRT-LM "
        "(Android, desktop). "
        "tflite: the bare model.",
    )


def scheme(job: Job[Options]) -> str:
    """Type of the weights, what shares a scale, and how they are used."""
    recipe, options = job.recipe, job.options
    if recipe.precision not in BITS:
        return "float32"
    group = _group(recipe, options)
    shared = "per row" if group < 0 else f"in groups of {group}"
    return f"{recipe.precision} {shared}, {options.scheme.replace('_', ' ')}"


def _group(recipe: Recipe, options: Options) -> int:
    """Groups of 32 wherever there are kernels for groups: on the embedded model 2.3e-3 where rows
    give 3.5e-3."""
    grouped = recipe.precision == "int4" and options.scheme == "dynamic"
    return options.group_size or (GROUP if grouped else -1)


def _limit(checkpoint: Checkpoint) -> int:
    """Positions up to which the exported model computes what the original does."""
    limits = [checkpoint.context_length]
    if checkpoint.longrope:
        limits.append(checkpoint.original_context_length)
    if checkpoint.model_type == "phi3" and checkpoint.sliding_window:
        limits.append(checkpoint.sliding_window)
    return min(limits)


def _context(options: Options, checkpoint: Checkpoint) -> int:
    return options.context_length or min(CONTEXT, _limit(checkpoint))


def _prefill(options: Options, checkpoint: Checkpoint) -> int:
    return options.prefill_length or min(PREFILL, _context(options, checkpoint))


def steps(job: Job[Options]) -> list[Step]:
    """``convert`` in fp32, one for all precisions; for int8 and int4 ``quantize``; ``bundle`` if it
    is wanted."""
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    parameters = checkpoint.parameters
    made = [
        Step(
            name="convert",
            runs="litert/convert",
            version=1,
            needs={"source": "source"},
            params={
                "prefill_length": _prefill(options, checkpoint),
                "context_length": _context(options, checkpoint),
                "config_patch": dict(job.patch),
            },
            toolchain=TOOLCHAIN,
            unquantized="fp32",
            output_bytes=4 * parameters,
            memory_bytes=5 * 2**28 + 13 * parameters,
        )
    ]
    size = 4 * parameters
    if recipe.precision in BITS:
        bits = BITS[recipe.precision]
        size = parameters * bits // 8
        made.append(
            Step(
                name="quantize",
                runs="litert/quantize",
                version=1,
                needs={"model": "convert"},
                params={
                    "bits": bits,
                    "group_size": _group(recipe, options),
                    "scheme": options.scheme,
                },
                toolchain=TOOLCHAIN,
                output_bytes=size,
                memory_bytes=2**30 + 2 * parameters,
            )
        )
    if options.format == "litertlm":
        made.append(
            Step(
                name="bundle",
                runs="litert/bundle",
                version=1,
                needs={"model": made[-1].name},
                params={"context_length": _context(options, checkpoint)},
                toolchain=TOOLCHAIN,
                output_bytes=size,
                memory_bytes=2**30 + size,
            )
        )
    return made


def _odd(group: int, checkpoint: Checkpoint) -> bool:
    return group > 0 and not checkpoint.is_divided_by(group)


def _working(checkpoint: Checkpoint) -> str:
    """What may stand for the group size, in words."""
    sizes = [str(size) for size in (32, 64, 128) if not _odd(size, checkpoint)]
    return ", ".join([*sizes, "-1"])


RULES = (
    Rule(
        id="R01",
        level="error",
        when=lambda r, o, c: c.model_type not in MODEL_TYPES,
        message="models of type `{checkpoint.model_type}` were never exported to LiteRT by phipipe",
        hint=f"it exports these types: {', '.join(MODEL_TYPES)}",
    ),
    Rule(
        id="R02",
        level="error",
        when=lambda r, o, c: _context(o, c) > c.context_length,
        message="`context_length: {options.context_length}` is more than this model's "
        "{checkpoint.context_length}",
        hint="set `quantize.context_length` to that or less",
    ),
    Rule(
        id="R03",
        level="error",
        when=lambda r, o, c: _prefill(o, c) > _context(o, c),
        message="`prefill_length: {options.prefill_length}` is more than the cache holds",
        hint="set `quantize.prefill_length` to `context_length` or less",
    ),
    Rule(
        id="R04",
        level="error",
        when=lambda r, o, c: (
            max(r.evaluate.window, r.measure.prompt_tokens + r.measure.new_tokens) > _context(o, c)
        ),
        message="the evaluation needs a longer cache than is exported: windows of "
        "{recipe.evaluate.window} tokens, "
        "measurements of {recipe.measure.prompt_tokens} and {recipe.measure.new_tokens}",
        hint="raise `quantize.context_length`, or lower `evaluate.window`, "
        "`measure.prompt_tokens` or `new_tokens`",
    ),
    Rule(
        id="R05",
        level="error",
        when=lambda r, o, c: (
            c.longrope and c.original_context_length < _context(o, c) <= c.context_length
        ),
        message="the export holds one set of LongRoPE factors, the short ones: beyond "
        "{checkpoint.original_context_length} tokens the model would differ from the original",
        hint="set `quantize.context_length` to that or less",
    ),
    Rule(
        id="R06",
        level="error",
        when=lambda r, o, c: (
            c.model_type == "phi3"
            and 0 < (c.sliding_window or 0) < _context(o, c) <= c.context_length
        ),
        message="litert-torch cannot export the sliding window of {checkpoint.sliding_window} "
        "tokens: with a longer "
        "cache the model would differ from the original",
        hint="set `quantize.context_length` to that or less",
    ),
    Rule(
        id="R07",
        level="error",
        when=lambda r, o, c: (
            (o.group_size or -1) > 0 and (r.precision == "int8" or o.scheme == "weight_only")
        ),
        message="LiteRT runs groups of weights in dynamic int4 only",
        hint="leave `group_size` out, or set `precision: int4` and `scheme: dynamic`",
    ),
    Rule(
        id="R08",
        level="error",
        when=lambda r, o, c: r.precision == "int4" and _odd(_group(r, o), c),
        message="groups of {group} do not divide this model's layers (hidden size "
        "{checkpoint.hidden_size}, "
        "intermediate size {checkpoint.intermediate_size})",
        hint="for `quantize.group_size` these work: {working} (-1 is a whole row); or choose int8",
        words=lambda r, o, c: {"group": _group(r, o), "working": _working(c)},
    ),
    Rule(
        id="R09",
        level="warning",
        when=lambda r, o, c: r.precision == "int4" and _group(r, o) < 0,
        message="int4 with one scale for a whole row is further from the original than in "
        "groups of 32, in a file of "
        "the same size",
        hint="leave `quantize.group_size` and `scheme` out, or choose int8",
    ),
    Rule(
        id="R14",
        level="warning",
        when=lambda r, o, c: (
            r.precision not in BITS and bool({"scheme", "group_size"} & o.model_fields_set)
        ),
        message="`quantize.scheme` and `quantize.group_size` change nothing: {recipe.precision} "
        "quantizes nothing",
        hint="take them out, or choose int8 or int4",
    ),
)


FIXUPS = (
    Fixup(
        id="F3",
        rule="R06",
        when=lambda r, c: c.model_type == "phi3" and c.sliding_window is not None,
        reason="litert-torch cannot export Phi-3's sliding window; the exported cache is never "
        "longer than it",
        patch=lambda c: {"sliding_window": None},
    ),
)


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to ``model.tflite`` in fp32 beside its tokenizer
    and config files.

    Raises:
        StepFailed: litert-torch wrote something else than fp32, or other lengths than asked.
    """
    import tempfile

    from phipipe.backends.litert.files import MODEL, read, verify_floats
    from phipipe.models.staging import staged

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        source = staged(inputs["source"], params["config_patch"], Path(scratch) / "model")
        _export(source, Path(scratch), params)
        shutil.move(Path(scratch) / MODEL, out / MODEL)
    _copy_others(inputs["source"], out)
    verify_floats(read(out / MODEL))
    _check_lengths(out / MODEL, params)


def _export(source: Path, work: Path, params: Params) -> None:
    """litert-torch's own export, cut where it would write a second tokenizer and quantize by
    default."""
    from litert_torch.generative.export_hf.core import export_lib
    from litert_torch.generative.export_hf.core.exportable_module_config import (
        ExportableModuleConfig,
    )

    config = ExportableModuleConfig(
        model=str(source),
        output_dir=str(work),
        work_dir=str(work),
        prefill_lengths=[params["prefill_length"]],
        cache_length=params["context_length"],
        quantization_recipe=None,
        # no runtime reads them: they would cost an LM head for every part of a prompt
        prefill_logits=False,
        bundle_litert_lm=False,
    )
    loaded: Any = export_lib.load_model(str(source), config, trust_remote_code=False)
    for module in loaded.model.modules():
        # Its factors would be chosen while running, which cannot be exported; loaded are the short
        # ones, with the scaling of attention that belongs to both.
        if getattr(module, "rope_type", None) == "longrope":
            module.rope_type = "default"
    config = export_lib.update_export_config(config, loaded)
    export_lib.export_text_prefill_decode_model(loaded, config, export_lib.ExportedModelArtifacts())


def _copy_others(source: Path, out: Path) -> None:
    """The checkpoint's tokenizer and config files as they are; weights stay behind."""
    copy_beside(
        source,
        out,
        leave=lambda name: "safetensors" in name or name.endswith((".tflite", ".litertlm")),
    )


def _check_lengths(model: Path, params: Params) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=1)
    found = sorted(interpreter.get_signature_list())
    prefill = f"prefill_{params['prefill_length']}"
    if found != ["decode", prefill]:
        raise StepFailed(
            f"litert-torch wrote the signatures {', '.join(found)} instead of decode and {prefill}"
        )
    cache = int(interpreter.get_signature_runner("decode").get_input_details()["mask"]["shape"][-1])
    if cache != params["context_length"]:
        raise StepFailed(
            f"litert-torch made a cache of {cache} tokens instead of {params['context_length']}"
        )


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, with weights as ``params`` say, and
    read back.

    Raises:
        StepFailed: a matrix is stored in another way than asked; it names the first.
    """
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    from phipipe.backends.litert.files import MODEL, read, verify

    group = params["group_size"]
    granularity = qtyping.QuantGranularity("CHANNELWISE" if group < 0 else f"BLOCKWISE_{group}")
    rules = recipe_manager.RecipeManager()
    add = (
        rules.add_dynamic_config if params["scheme"] == "dynamic" else rules.add_weight_only_config
    )
    add(
        ".*",
        qtyping.TFLOperationName.ALL_SUPPORTED,
        num_bits=params["bits"],
        granularity=granularity,
    )
    made = quantizer.Quantizer(str(inputs["model"] / MODEL), rules.get_quantization_recipe())
    made.quantize().export_model(str(out / MODEL))
    _copy_others(inputs["model"], out)
    verify(read(inputs["model"] / MODEL), read(out / MODEL), params)


def bundle(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, any folder with a ``model.tflite``, with a LiteRT-LM bundle in the
    model's place.

    Raises:
        StepFailed: there is no tokenizer that LiteRT-LM can read, or the bundle does not hold the
            model as it is.
    """
    from phipipe.backends.litert.files import BUNDLE, write_bundle

    _copy_others(inputs["model"], out)
    write_bundle(inputs["model"], out / BUNDLE, params["context_length"])


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Load a ``.tflite``, or the one inside a bundle, on the CPU."""
    from phipipe.backends.litert.session import Session

    return Session(artifact)


def tokenizer(artifact: Path) -> Tokenizer:
    """The artifact's tokenizer as transformers reads it."""
    from phipipe.models.tokenizer import of_folder

    return of_folder(artifact)


FACE = Backend(
    title="LiteRT",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions={"cpu": _SCHEMES},
    systems=frozenset({"linux", "windows", "macos", "android", "ios"}),
    cache_bytes={"cpu": 4},
    files=("config.json", "model.tflite", "model.litertlm"),
    steps=steps,
    scheme=scheme,
    context_length=lambda job: _context(job.options, job.checkpoint),
    rules=RULES,
    fixups=FIXUPS,
    finer=(Finer(options={"group_size": 32}, told="groups of 32", unless="weight only"),),
    open=open,
    tokenizer=tokenizer,
    rank=6,
    colour=5,
)
