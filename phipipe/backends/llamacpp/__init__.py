"""llama.cpp: checkpoint → outline of its GGUF, once → one file, in floats or in llama.cpp's
quantization types, and a Modelfile.

The outline is what llama.cpp's own converter, as auto-round carries it (toolchain ``torch``),
would write, without the matrices that are rows of the checkpoint's. These are read, rounded by ggml
and written one after the other (toolchain ``llamacpp``), in the types that llama.cpp itself
chooses: the weights are never in memory as a whole, and no copy of them in floats is written on the
way. A small model, or the first layers of a large one, is written in floats beside it, by the same
outline and from the same rows, and compared with the original.

Importance matrix: for every linear, the mean over calibration tokens of each input's square,
computed on the original in fp32. llama.cpp weighs rounding errors by it (llama.cpp,
tools/imatrix/README.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.backends.base import LEARNING, Backend, Finer, Job
from phipipe.backends.implied import IMPLIED
from phipipe.backends.llamacpp.options import ADVICE, STORES, Options, tensor_type, type_of
from phipipe.backends.llamacpp.rules import RULES
from phipipe.backends.llamacpp.types import BITS, DTYPES, FLOATS, TYPES, float_type
from phipipe.files import json_files
from phipipe.models import held, layerwise_memory, linears
from phipipe.models.held import Held
from phipipe.sandbox.tokenizer import open_in_child
from phipipe.steps import Json, Params, Step

if TYPE_CHECKING:
    from phipipe.backends.base import Codec, Runtime, Tokenizer
    from phipipe.backends.widths import Stored
    from phipipe.models.checkpoint import Checkpoint
    from phipipe.recipe.recipe import Precision, Recipe

TOOLCHAIN = "llamacpp"
STEPS: Mapping[str, str] = {
    "outline": "phipipe.backends.llamacpp.outline:outline",
    "convert": "phipipe.backends.llamacpp.convert:convert",
    "imatrix": "phipipe.backends.llamacpp.imatrix:imatrix",
    "quantize": "phipipe.backends.llamacpp.quantize:quantize",
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


def scheme(job: Job[Options]) -> str:
    """The file type, and what is exceptional."""
    recipe, options = job.recipe, job.options
    words = [type_of(recipe, options), *(["importance matrix"] if options.imatrix else [])]
    words += ["pure"] * options.pure + ["precision map"] * bool(options.map)
    words += [f"{name} {kind}" for name, kind in _special(options).items()]
    return ", ".join(words)


def _special(options: Options) -> Mapping[str, str]:
    named = {"output": options.output_type, "embedding": options.embedding_type}
    return {name: kind for name, kind in named.items() if kind} | dict(options.tensors)


def steps(job: Job[Options]) -> list[Step]:
    """``outline``, shared by all quantized types; ``convert``, where floats are asked for, or to be
    compared with the original; ``imatrix`` where asked for; ``quantize``."""
    wanted = type_of(job.recipe, job.options)
    if wanted in FLOATS:
        return [_outline_step(job, wanted), _convert_step(job, wanted)]
    # Quantization starts from the checkpoint's own width, so that nothing is rounded twice.
    own = _own_width(job.checkpoint)
    return [
        _outline_step(job, own),
        *([] if job.checkpoint.large else [_convert_step(job, own)]),
        *([_imatrix_step(job)] if job.options.imatrix else []),
        _quantize_step(job, wanted),
    ]


def _outline_step(job: Job[Options], kind: str) -> Step:
    recipe, checkpoint = job.recipe, job.checkpoint
    return Step(
        name="outline",
        runs="llamacpp/outline",
        version=1,
        needs={"source": "source"},
        params={
            "type": kind,
            "name": model_name(recipe, checkpoint),
            "config_patch": dict(job.patch),
            "context": _served(recipe, checkpoint),
        },
        toolchain="torch",
        output_bytes=64 * checkpoint.vocab_size,  # texts, scores and merges of tokens
        memory_bytes=2**30,
    )


def _convert_step(job: Job[Options], kind: str) -> Step:
    return Step(
        name="convert",
        runs="llamacpp/convert",
        version=5,
        needs={"outline": "outline", "source": "source"},
        params={"type": kind},
        toolchain=TOOLCHAIN,
        unquantized=DTYPES[kind],
        output_bytes=int(job.checkpoint.parameters * TYPES[kind].bits / 8),
        memory_bytes=2**29,
    )


def _imatrix_step(job: Job[Options]) -> Step:
    checkpoint, calibrate = job.checkpoint, job.recipe.calibrate
    return Step(
        name="imatrix",
        runs="llamacpp/imatrix",
        version=1,
        needs={"source": "source", "calibration": "calibration"},
        layers="source",
        toolchain="torch",
        memory_bytes=16 * calibrate.window * checkpoint.intermediate_size  # squares, in fp64
        + layerwise_memory.memory_bytes(checkpoint, calibrate.tokens, calibrate.window),
    )


def _quantize_step(job: Job[Options], wanted: str) -> Step:
    options, checkpoint = job.options, job.checkpoint
    own = _own_width(checkpoint)
    mapped: dict[str, Json] = {name: tensor_type(one, own) for name, one in job.widths.items()}
    bits = checkpoint.parameters * TYPES[wanted].bits
    shapes = linears.shapes(checkpoint) if mapped else {}
    for name, stored in job.widths.items():
        rows, columns = shapes[name]
        bits += rows * columns * (_weight_bits(job, name, stored, columns) - TYPES[wanted].bits)
    size = int(bits / 8)
    needs = {"outline": "outline", "source": "source"}
    needs |= {"imatrix": "imatrix"} if options.imatrix else {}
    needs |= {"weights": "weights"} if job.learns else {}
    return Step(
        name="quantize",
        runs="llamacpp/quantize",
        version=2,
        needs=needs,
        params={
            "type": wanted,
            "pure": options.pure,
            "tensors": [list(pair) for pair in options.tensors.items()],
            "output_type": options.output_type,
            "embedding_type": options.embedding_type,
            **({"widths": mapped} if mapped else {}),
        },
        toolchain=TOOLCHAIN,
        output_bytes=size,
        loaded_bytes=2 * size,  # the file mapped, and its rows rearranged for the CPU beside it
        memory_bytes=2**29,
    )


def _weight_bits(job: Job[Options], name: str, stored: Stored, columns: int) -> float:
    return BITS[tensor_type(stored, _own_width(job.checkpoint))]


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
    return float_type(checkpoint.dtype)


def model_name(recipe: Recipe, checkpoint: Checkpoint) -> str:
    """``general.name``, by which llama.cpp knows Phi-3's SentencePiece vocabulary.

    It strips the space after special tokens if it reads "Phi-3" there; with another vocabulary it
    then fails to load.
    """
    source, adapter = recipe.source, recipe.source.adapter
    repo, folder = source.repo, checkpoint.folder.name
    if adapter is not None:
        repo, folder = adapter.repo, Path(str(adapter.path)).name
    name = repo.rpartition("/")[2] if repo else source.builtin or folder
    if checkpoint.tokenizer != "sentencepiece" or not stripped_after(checkpoint):
        return re.sub("phi-?3", "Phi", name, flags=re.IGNORECASE)
    return name if re.search("phi-?3", name, re.IGNORECASE) else f"Phi-3 {name}"


def stripped_after(checkpoint: Checkpoint) -> bool:
    """Whether the tokenizer leaves out white space after the special tokens of chats, as Phi-3's
    does: by ``tokenizer.json`` where it is there, else by the type of model."""
    path = checkpoint.folder / "tokenizer.json"
    if checkpoint.folder == Path() or not path.is_file():  # a shape without files
        return checkpoint.model_type == "phi3"
    return _strips(held.by((path.name,), path.parent))


@lru_cache(maxsize=64)
def _strips(file: Held) -> bool:
    added = json_files.read_object(file.folder / "tokenizer.json").get("added_tokens") or []
    marks = [t for t in added if t.get("special") and str(t.get("content")).startswith("<|")]
    return any(token.get("rstrip") for token in marks)


def open(artifact: Path, api: str = "cpu") -> Runtime:
    """Load the GGUF on the CPU; with another API, every layer on the GPU that llama.cpp was
    compiled for."""
    from phipipe.backends.llamacpp.session import Session

    return Session(artifact / MODEL, gpu=api != "cpu")


def open_run(artifact: Path, api: str = "cpu", cache: str = "") -> Runtime:
    """The same with llama.cpp's own cache and attention."""
    from phipipe.backends.llamacpp.session import Session

    return Session(artifact / MODEL, gpu=api != "cpu", as_run=True, cache=cache)


def tokenizer(artifact: Path) -> Tokenizer:
    """The vocabulary and chat template inside the GGUF, in a limited child."""
    opener = "phipipe.backends.llamacpp.vocabulary:Vocabulary"
    return open_in_child(opener, artifact / MODEL, ["llama_cpp", "llama_cpp.llama_chat_format"])


def codec(params: Params) -> Codec:
    """What ggml rounds rows of a weight to."""
    from phipipe.backends.llamacpp.codecs import codec

    return codec(params)


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
    fixups=IMPLIED,
    is_uniform=lambda o: not o.map and (o.pure or (o.type not in _WIDER and not o.tensors)),
    wider="set `quantize.type: Q4_K_M` and `quantize.imatrix: true`",
    apart={"type": "Q4_K_M", "imatrix": True},
    values={"type": {name: one.words() for name, one in TYPES.items()}},
    finer=(
        LEARNING,
        Finer(options={"imatrix": True}, told="importance matrix", unless=LEARNING.told),
        Finer(options={"type": "Q6_K"}, told="Q6_K", unless=LEARNING.told),
    ),
    normalizes=False,
    unable={
        "gemma3_text": "llama.cpp has one pattern of its windows in its code, and no conversion "
        "was proven here"
    },
    open=open,
    # llama_context_default_params; activations are rounded to blocks of 8 bits in both
    knob=lambda recipe, api: "keys and values in float16, flash attention",
    open_run=open_run,
    caches={"q8": "q8_0", "q4": "q4_0"},
    tokenizer=tokenizer,
    rotary=frozenset({"linear", "llama3", "longrope", "yarn"}),
    suits="The widest reach: every CPU, Metal, CUDA, Vulkan, OpenCL, and programs such as "
    "Ollama and LM Studio. Choose it where one file must run everywhere.",
    advice=ADVICE,
    stores=STORES,
    weight_bits=_weight_bits,
    codec=codec,
    library="gguf",
    hub_tags=("llama.cpp",),
    rank=5,
    colour=2,
)
