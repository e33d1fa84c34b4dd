"""llama.cpp: checkpoint → GGUF at its own width, once → llama.cpp's quantization types → one file
and a Modelfile.

Conversion is llama.cpp's own converter, as auto-round carries it (toolchain ``torch``);
quantization, evaluation and chat run in llama.cpp itself (toolchain ``llamacpp``). Both work tensor
by tensor: the weights are never in memory as a whole.

Importance matrix: for every linear, the mean over calibration tokens of each input's square,
computed on the original in fp32. llama.cpp weighs rounding errors by it (llama.cpp,
tools/imatrix/README.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from phipipe.backends.base import Backend, Finer, Job
from phipipe.backends.rules import SOFTMAX_ROUTED, WINDOWLESS, Rule
from phipipe.errors import StepFailed
from phipipe.steps import Step

if TYPE_CHECKING:
    from phipipe.backends.base import Runtime, Tokenizer
    from phipipe.models.checkpoints import Checkpoint
    from phipipe.recipe.recipe import Precision, Recipe
    from phipipe.steps import Inputs, Params

TOOLCHAIN = "llamacpp"
STEPS: Mapping[str, str] = {
    "convert": "phipipe.backends.llamacpp:convert",
    "imatrix": "phipipe.backends.llamacpp.imatrix:imatrix",
    "quantize": "phipipe.backends.llamacpp:quantize",
}
_SCHEMES: Mapping[Precision, str] = {
    "fp32": "F32",
    "fp16": "F16, BF16",
    "int8": "Q8_0",
    "int4": "Q4_K_M and others",
}
# int4 types that keep the sensitive layers wider; no type is Q4_K_M.
_WIDER = frozenset({None, "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K"})
OLLAMA_CONTEXT = 4096
MODEL, MODELFILE, IMATRIX = "model.gguf", "Modelfile", "imatrix.npz"


class Type(NamedTuple):
    """One of llama.cpp's file types: the tensor type it is named after, and its usual size."""

    tensor: str
    # per weight, of a whole model of some billion weights (llama.cpp, tools/quantize/README.md)
    bits: float
    needs_imatrix: bool = False


TYPES: Mapping[str, Type] = {
    "F32": Type("F32", 32),
    "F16": Type("F16", 16),
    "BF16": Type("BF16", 16),
    "Q8_0": Type("Q8_0", 8.5),
    "Q6_K": Type("Q6_K", 6.6),
    "Q5_K_M": Type("Q5_K", 5.7),
    "Q5_K_S": Type("Q5_K", 5.6),
    "Q5_1": Type("Q5_1", 6.0),
    "Q5_0": Type("Q5_0", 5.5),
    "Q4_K_M": Type("Q4_K", 4.9),
    "Q4_K_S": Type("Q4_K", 4.7),
    "Q4_1": Type("Q4_1", 5.1),
    "Q4_0": Type("Q4_0", 4.7),
    "IQ4_NL": Type("IQ4_NL", 4.7),
    "IQ4_XS": Type("IQ4_XS", 4.5),
    "Q3_K_L": Type("Q3_K", 4.3),
    "Q3_K_M": Type("Q3_K", 4.0),
    "Q3_K_S": Type("Q3_K", 3.7),
    "IQ3_M": Type("IQ3_S", 3.8),
    "IQ3_S": Type("IQ3_S", 3.7),
    "IQ3_XS": Type("IQ3_S", 3.5, True),
    "IQ3_XXS": Type("IQ3_XXS", 3.3, True),
    "Q2_K": Type("Q2_K", 3.2),
    "Q2_K_S": Type("Q2_K", 3.0, True),
    "IQ2_M": Type("IQ2_S", 3.0, True),
    "IQ2_S": Type("IQ2_XS", 2.8, True),
    "IQ2_XS": Type("IQ2_XS", 2.6, True),
    "IQ2_XXS": Type("IQ2_XXS", 2.4, True),
    "IQ1_M": Type("IQ1_M", 2.2, True),
    "IQ1_S": Type("IQ1_S", 2.0, True),
}
DEFAULTS: Mapping[str, str] = {"fp32": "F32", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_K_M"}
# How byte-level BPE tokenizers of the family cut text into words → llama.cpp's name for it
# (src/llama-vocab.cpp).
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACE = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: Mapping[str, str] = {
    "GPT-2": "phi-2",
    _WORD
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    + _SPACE: "dbrx",  # Phi-4, cl100k
    r"[^\r\n\p{L}\p{N}]?"  # Phi-4-mini, o200k
    + rf"{_UPPER}*{_LOWER}+{_WORD}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORD}?"
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    + _SPACE: "gpt-4o",
}
FLOATS: Mapping[str, str] = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
BLOCK_256 = frozenset(
    name for name in TYPES if "_K" in name or (name.startswith("IQ") and name != "IQ4_NL")
)
TypeName = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S",
    "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
]  # fmt: skip
TensorType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K",
    "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS",
]  # fmt: skip


class Options(BaseModel):
    """llama.cpp's own names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: TypeName | None = Field(
        default=None,
        description="The file type. Without it: Q4_K_M for int4, Q8_0 for int8, F16 for fp16. "
        "int4 stands for all "
        "types below 8 bits. Q4_0 and IQ4_NL are what Arm phones repack for their fast kernels.",
    )
    imatrix: bool = Field(
        default=False,
        strict=True,
        description="Weigh rounding errors by how strongly the calibration text drives each input "
        "(`calibrate.text`). Better below 5 bits; required by the smallest types.",
    )
    output_type: TensorType | None = Field(
        default=None, description="Another type for the output layer (LM head)."
    )
    embedding_type: TensorType | None = Field(
        default=None, description="Another type for the token embedding."
    )
    tensors: dict[str, TensorType] = Field(
        default={},
        description="Other types for single tensors: regular expressions over GGUF's names, "
        "such as `ffn_down: Q8_0`. "
        "The first that is found in a name wins.",
    )
    pure: bool = Field(
        default=False,
        strict=True,
        description="One type for all layers, where llama.cpp would mix in better ones.",
    )


def type_of(recipe: Recipe, options: Options) -> str:
    """The file type that a recipe asks for."""
    return options.type or DEFAULTS[recipe.precision]


def scheme(job: Job[Options]) -> str:
    """The file type, and what is exceptional."""
    recipe, options = job.recipe, job.options
    words = [type_of(recipe, options), *(["importance matrix"] if options.imatrix else [])]
    words += ["pure"] if options.pure else []
    words += [f"{name} {kind}" for name, kind in _special(options).items()]
    return ", ".join(words)


def _special(options: Options) -> Mapping[str, str]:
    named = {"output": options.output_type, "embedding": options.embedding_type}
    return {name: kind for name, kind in named.items() if kind} | dict(options.tensors)


def steps(job: Job[Options]) -> list[Step]:
    """``convert``, shared by all quantized types; ``imatrix`` where asked for; ``quantize``."""
    recipe, options, checkpoint = job.recipe, job.options, job.checkpoint
    wanted, parameters = type_of(recipe, options), checkpoint.parameters
    # Quantization starts from the checkpoint's own width, so that nothing is rounded twice.
    kind = wanted if wanted in FLOATS else _own_width(checkpoint)
    convert_step = Step(
        name="convert",
        runs="llamacpp/convert",
        version=2,
        needs={"source": "source"},
        params={
            "type": kind,
            "name": _model_name(recipe, checkpoint),
            "config_patch": dict(job.patch),
            "context": _served(recipe, checkpoint),
        },
        toolchain="torch",
        unquantized="fp32" if kind == "F32" else "fp16",
        output_bytes=int(parameters * TYPES[kind].bits / 8),
        memory_bytes=2**30 + 4 * checkpoint.vocab_size * checkpoint.hidden_size,
    )
    if wanted in FLOATS:
        return [convert_step]
    needs, made = {"model": "convert"}, [convert_step]
    if options.imatrix:
        needs["imatrix"] = "imatrix"
        made.append(
            Step(
                name="imatrix",
                runs="llamacpp/imatrix",
                version=1,
                needs={"source": "source", "calibration": "calibration"},
                toolchain="torch",
                memory_bytes=4 * parameters + 2**30,
            )
        )
    named = {"output_type": options.output_type, "embedding_type": options.embedding_type}
    quantize_step = Step(
        name="quantize",
        runs="llamacpp/quantize",
        version=1,
        needs=needs,
        params={
            "type": wanted,
            "pure": options.pure,
            "tensors": [list(i) for i in options.tensors.items()],
            **named,
        },
        toolchain=TOOLCHAIN,
        output_bytes=(size := int(parameters * TYPES[wanted].bits / 8)),
        loaded_bytes=2 * size,  # the file mapped, and its rows rearranged for the CPU beside it
        memory_bytes=2**29 + 4 * checkpoint.vocab_size * checkpoint.hidden_size,
    )
    return [*made, quantize_step]


def _served(recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Tokens of context for Ollama: what the recipe asks for, within what the model was made and
    tested for.

    Where the recipe says nothing it is Ollama's own 4096: it takes the memory for all of it at
    once.
    """
    longest = (
        checkpoint.original_context_length if checkpoint.longrope else checkpoint.context_length
    )
    return min(
        recipe.context or OLLAMA_CONTEXT,
        longest if recipe.context is None else checkpoint.context_length,
    )


def _own_width(checkpoint: Checkpoint) -> str:
    found = str(checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype") or "float32")
    return {"float16": "F16", "bfloat16": "BF16"}.get(found, "F32")


def _model_name(recipe: Recipe, checkpoint: Checkpoint) -> str:
    """``general.name``, by which llama.cpp knows Phi-3's SentencePiece vocabulary.

    It strips the space after special tokens if it reads "Phi-3" there; with another vocabulary it
    then fails to load.
    """
    source = recipe.source
    name = (
        source.repo.rpartition("/")[2] if source.repo else source.builtin or checkpoint.folder.name
    )
    if checkpoint.tokenizer != "sentencepiece":
        return re.sub("phi-?3", "Phi", name, flags=re.IGNORECASE)
    named = checkpoint.model_type != "phi3" or re.search("phi-?3", name, re.IGNORECASE)
    return name if named else f"Phi-3 {name}"


def _belongs(precision: str, kind: str) -> bool:
    bits = TYPES[kind].bits
    return (
        kind in FLOATS
        if precision.startswith("fp")
        else (bits < 8) == (precision == "int4") and bits < 16
    )


def _width_of(precision: str, kind: str) -> bool:
    return {"fp32": kind == "F32", "fp16": kind in ("F16", "BF16")}.get(
        precision, _belongs(precision, kind)
    )


RULES = (
    Rule(
        id="L01",
        level="error",
        when=lambda r, o, c: TYPES[type_of(r, o)].needs_imatrix and not o.imatrix,
        message="`{options.type}` is unusable without an importance matrix; llama.cpp refuses it",
        hint="set `quantize.imatrix: true` (it learns from `calibrate.text`)",
    ),
    Rule(
        id="L05",
        level="error",
        when=lambda r, o, c: c.tied and o.output_type is not None and o.embedding_type is not None,
        message="the embedding is also the output layer: `output_type` and `embedding_type` "
        "name one tensor twice",
        hint="set `embedding_type` alone",
    ),
    Rule(
        id="L08",
        level="error",
        when=lambda r, o, c: c.model_type == "phi3" and c.tokenizer == "other",
        message="llama.cpp's converter cannot read this checkpoint's vocabulary: there is no "
        "`tokenizer.model`, and "
        "`tokenizer_config.json` does not name a `GPT2Tokenizer`",
        hint="take `tokenizer.model` (Phi-3) or `tokenizer_config.json` (Phi-4) from the "
        "original repository",
    ),
    Rule(
        id="L10",
        level="error",
        when=lambda r, o, c: not _width_of(r.precision, type_of(r, o)),
        message="`{options.type}` is no {recipe.precision} type",
        hint="set `precision` to int4 for all types below 8 bits, int8 for Q8_0, fp16 for F16 "
        "and BF16",
    ),
    Rule(
        id="L11",
        level="error",
        when=lambda r, o, c: type_of(r, o) in BLOCK_256 and not c.is_divided_by(256),
        message="`{recipe.precision}` would be stored in blocks of 256, which do not divide "
        "this model's layers "
        "(hidden size {checkpoint.hidden_size}, intermediate size "
        "{checkpoint.intermediate_size}): llama.cpp would "
        "take other types without a word",
        hint="set `quantize.type` to one with blocks of 32: Q4_0, IQ4_NL, Q5_0 or Q8_0",
    ),
    Rule(
        id="L12",
        level="error",
        when=lambda r, o, c: TYPES[type_of(r, o)].bits < 16 and not c.is_divided_by(32),
        message="blocks of 32 do not divide this model's layers (hidden size "
        "{checkpoint.hidden_size}, "
        "intermediate size {checkpoint.intermediate_size})",
        hint="choose fp16",
    ),
    Rule(
        id="L14",
        level="warning",
        when=lambda r, o, c: type_of(r, o) in FLOATS and bool(o.model_fields_set - {"type"}),
        message="`quantize` is set, but {recipe.precision} quantizes nothing",
        hint="take `quantize` out, or choose int8 or int4",
    ),
    Rule(
        id="L15",
        level="error",
        when=lambda r, o, c: any(remark.rule == "W04" for remark in c.remarks),
        message="llama.cpp's converter fails on a token that lies beyond the model's table, if "
        "only for padding",
        hint="take the added token out of the tokenizer's files, and pad with one that the "
        "model has",
    ),
    *SOFTMAX_ROUTED,
    *WINDOWLESS,
    Rule(
        id="M10",
        level="warning",
        when=lambda r, o, c: (
            c.longrope and (r.context is None or r.context > c.original_context_length)
        ),
        message="with a context above {checkpoint.original_context_length} tokens llama.cpp "
        "takes LongRoPE's long "
        "factors for every prompt (llama.cpp issue 24823): load the model with at most that",
        hint="`context: {checkpoint.original_context_length}` says that to this build",
    ),
)


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to ``model.gguf`` in ``params["type"]``, and an
    Ollama ``Modelfile``.

    Raises:
        StepFailed: the converter does not know the architecture, or what it wrote is not what was
            asked.
    """
    import tempfile

    from phipipe.backends.llamacpp import gguf as llama_gguf
    from phipipe.backends.llamacpp import modelfile
    from phipipe.models.staging import staged

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        # A folder of a neutral name: the converter reads names and sizes out of folder names.
        source = staged(inputs["source"], params["config_patch"], Path(scratch) / "model")
        _convert(source, out / MODEL, params)
    llama_gguf.check_floats(out / MODEL, params["type"])
    (out / MODELFILE).write_bytes(
        modelfile.text(inputs["source"], MODEL, params["context"]).encode()
    )


def _convert(source: Path, target: Path, params: Params) -> None:
    import json

    import gguf
    import torch
    from auto_round.export.export_to_gguf.llama_cpp_conversion import get_conversion

    architecture = json.loads((source / "config.json").read_text("utf-8"))["architectures"][0]
    try:
        known = get_conversion(source, auto_update=False).get_model_class(architecture)
    except NotImplementedError:
        raise StepFailed(f"llama.cpp's converter does not know `{architecture}`") from None

    file_type = getattr(gguf.LlamaFileType, FLOATS[params["type"]])
    model = known(source, file_type, target, model_name=params["name"])
    by_hash = model.get_vocab_base_pre

    def by_hash_or_pattern(tokenizer: object) -> str:
        try:
            return str(by_hash(tokenizer))
        except NotImplementedError:
            return _cut_by(source)

    model.get_vocab_base_pre = by_hash_or_pattern
    with torch.inference_mode():
        model.write()


def _cut_by(source: Path) -> str:
    """llama.cpp's name for how ``source``'s tokenizer cuts text before it merges bytes.

    The converter knows vocabularies by a hash, so it knows those of the originals alone. The
    regular expression says the same; whether token ids are the original's is checked after every
    conversion.

    Raises:
        StepFailed: it is none of the family's.
    """
    import json

    told = json.loads((source / "tokenizer.json").read_text("utf-8")).get("pre_tokenizer") or {}
    parts = told.get("pretokenizers", [told])
    patterns = [part["pattern"]["Regex"] for part in parts if "Regex" in part.get("pattern", {})]
    cuts = patterns or [
        "GPT-2" for part in parts if part.get("type") == "ByteLevel" and part.get("use_regex", True)
    ]
    if len(cuts) != 1 or cuts[0] not in PRE_TOKENIZERS:
        raise StepFailed(
            "llama.cpp knows neither this vocabulary nor how its tokenizer cuts text into words"
        )
    return PRE_TOKENIZERS[cuts[0]]


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, a GGUF in 16 or 32 bits, to ``params["type"]``.

    ``inputs["imatrix"]`` is optional. The file's tensors are verified before the step counts as
    done.

    Raises:
        StepFailed: llama.cpp refused, or stored something else than asked.
    """
    import shutil

    from phipipe.backends.llamacpp import gguf as llama_gguf
    from phipipe.backends.llamacpp import session

    importance = inputs["imatrix"] / IMATRIX if "imatrix" in inputs else None
    session.quantize(inputs["model"] / MODEL, out / MODEL, params, importance)
    shutil.copyfile(inputs["model"] / MODELFILE, out / MODELFILE)
    llama_gguf.check_quantized(out / MODEL, TYPES[params["type"]].tensor, params)


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Load the GGUF on the CPU; with another API, every layer on the GPU that llama.cpp was
    compiled for."""
    from phipipe.backends.llamacpp import session

    return session.Session(artifact / MODEL, gpu=api != "cpu")


def tokenizer(artifact: Path) -> Tokenizer:
    """The vocabulary and chat template inside the GGUF."""
    from phipipe.backends.llamacpp import session

    return session.vocabulary(artifact / MODEL)


FACE = Backend(
    title="llama.cpp (GGUF)",
    toolchain=TOOLCHAIN,
    options=Options,
    precisions=dict.fromkeys(("cpu", "cuda", "metal", "opencl", "vulkan"), _SCHEMES),
    systems=frozenset({"linux", "windows", "macos", "android", "ios"}),
    # its wheel is compiled without CUDA, Vulkan, OpenCL
    host_apis=frozenset({"cpu", "metal"}),
    cache_bytes=dict.fromkeys(("cpu", "cuda", "metal", "opencl", "vulkan"), 2),
    files=(MODEL, MODELFILE),
    is_compiled=True,
    steps=steps,
    scheme=scheme,
    rules=RULES,
    is_uniform=lambda o: o.pure or (o.type not in _WIDER and not o.tensors),
    wider="set `quantize.type: Q4_K_M`",
    finer=(
        Finer(options={"imatrix": True}, told="importance matrix"),
        Finer(options={"type": "Q6_K"}, told="Q6_K"),
    ),
    open=open,
    tokenizer=tokenizer,
    rank=5,
    colour=2,
)
