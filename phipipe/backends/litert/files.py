"""LiteRT's files: the matrices of a ``.tflite``, read back and checked; the LiteRT-LM bundle around
one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe.errors import StepFailed
from phipipe.models import tokenizer_files
from phipipe.sandbox.limited import Raised
from phipipe.sandbox.tokenizer import LimitedTokenizer

if TYPE_CHECKING:
    from phipipe.steps import Json

MODEL = "model.tflite"
BUNDLE = "model.litertlm"
FLOAT_BITS = 32
BITS = {"FLOAT32": FLOAT_BITS, "INT8": 8, "INT4": 4}
EPOCH = "1970-01-01T00:00:00+00:00"
Render = Callable[[Sequence[Mapping[str, str]]], str]
MARK = "\N{SNOWMAN}"  # no chat template has one


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A stored matrix of one signature. ``group`` is 0 for floats, -1 for one scale a row."""

    name: str
    shape: tuple[int, ...]
    kind: str  # TensorFlow Lite's tensor type
    group: int
    symmetric: bool
    dequantized: bool  # to floats, by an operator of its own, before it is used
    reader: str  # the operator that reads it


def read(path: Path) -> list[Weight]:
    """Every stored matrix (two lengths above 1) that an operator of the file's graphs reads.

    Raises:
        StepFailed: the file holds none.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    kinds = {
        number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)
    }
    operators = {
        number: name
        for name, number in vars(schema.BuiltinOperator).items()
        if isinstance(number, int)
    }
    model: Any = tfl_flatbuffer_utils.read_model(str(path))
    found = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            reader = operators[max(code.builtinCode, code.deprecatedBuiltinCode)]
            for index in operator.inputs:
                tensor = graph.tensors[index] if index >= 0 else None
                if (
                    tensor is None
                    or tensor.shape is None
                    or sum(length > 1 for length in tensor.shape) < 2
                ):
                    continue
                if _is_stored(model.buffers[tensor.buffer]):
                    found.append(
                        _weight(
                            f"{graph.name.decode()}:{tensor.name.decode()}", tensor, kinds, reader
                        )
                    )
    if not found:
        raise StepFailed(f"`{path.name}` holds no weights")
    return found


def _is_stored(buffer: Any) -> bool:
    """Whether the buffer has content; above 2 GB it lies behind the flatbuffer, at an offset."""
    return bool(buffer.offset and buffer.offset > 1) or (
        buffer.data is not None and len(buffer.data) > 0
    )


def _weight(name: str, tensor: Any, kinds: Mapping[int, str], reader: str) -> Weight:
    quantization, group, zeros = tensor.quantization, 0, None
    if quantization is not None and type(quantization.details).__name__ == "BlockwiseQuantizationT":
        group = int(quantization.details.blockSize)
        zeros = [] if quantization.details.zeroPoints < 0 else [1]
    elif quantization is not None and quantization.scale is not None and len(quantization.scale):
        scales, rows = len(quantization.scale), tensor.shape[quantization.quantizedDimension or 0]
        group = -1 if scales == rows else -2  # -2: something that we never ask for
        zeros = quantization.zeroPoint
    return Weight(
        name=name,
        shape=tuple(int(length) for length in tensor.shape),
        kind=kinds[tensor.type],
        group=group,
        symmetric=zeros is None or not any(zeros),
        dequantized=reader == "DEQUANTIZE",
        reader=reader,
    )


def verify(before: Sequence[Weight], after: Sequence[Weight], params: Mapping[str, Json]) -> None:
    """``after`` holds the matrices of ``before``, stored as ``params`` (``bits``, ``group_size``,
    ``scheme``) ask.

    Raises:
        StepFailed: names the first that is not as it should be.
    """
    shapes = [{weight.name: weight.shape for weight in found} for found in (before, after)]
    if shapes[0] != shapes[1]:
        changed = sorted(
            name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)
        )
        raise StepFailed(f"the quantizer lost or changed `{changed[0]}`")
    for weight in after:
        bits = BITS.get(weight.kind)
        if (bits, weight.group) != (params["bits"], params["group_size"]):
            asked = f"{params['bits']} bits and {_words(params['group_size'])}"
            raise StepFailed(
                f"`{weight.name}` was asked for in {asked}, and is stored as {weight.kind} with "
                f"{_words(weight.group)}"
            )
        if not weight.symmetric:
            raise StepFailed(
                f"`{weight.name}` is stored with zero points; LiteRT's weights are symmetric"
            )
        if weight.dequantized != (params["scheme"] == "weight_only"):
            asked = params["scheme"]
            raise StepFailed(
                f"`{weight.name}` is read by {weight.reader}, which is not how `{asked}` "
                f"weights are used"
            )


def _words(group: int) -> str:
    return {0: "no scale", -1: "one scale a row", -2: "scales of another kind"}.get(
        group, f"groups of {group}"
    )


def verify_floats(weights: Sequence[Weight]) -> None:
    """Every matrix is in 32-bit floating point.

    Raises:
        StepFailed: names the first that is not.
    """
    for weight in weights:
        if weight.kind != "FLOAT32":
            raise StepFailed(f"the conversion stored `{weight.name}` as {weight.kind}, not FLOAT32")


def write_bundle(folder: Path, target: Path, context_length: int) -> None:
    """The LiteRT-LM bundle of ``folder``'s model, tokenizer and chat template; its bytes depend on
    these alone.

    Raises:
        StepFailed: there is no tokenizer, or the bundle does not hold the model's very bytes.
    """
    from litert_lm_builder import litertlm_builder as builder

    digest = _sha256(folder / MODEL)
    identity = uuid.UUID(digest[:32])  # runtimes key their caches by it
    fixed = {"Authors": "phipipe", "uuid": str(identity), "creation_timestamp": EPOCH}
    made = builder.LitertLmFileBuilder()
    metadata = target.parent / ".llm_metadata.pb"
    metadata.write_bytes(_llm_metadata(folder, context_length))
    try:
        made.add_llm_metadata(str(metadata))
        if (
            folder / "tokenizer.json"
        ).is_file():  # `tokenizer.model` does not know the tokens added to it
            made.add_hf_tokenizer(str(folder / "tokenizer.json"))
        elif (folder / "tokenizer.model").is_file():
            made.add_sentencepiece_tokenizer(str(folder / "tokenizer.model"))
        else:
            raise StepFailed(
                "LiteRT-LM needs `tokenizer.json` or `tokenizer.model`, and the checkpoint has "
                "neither"
            )
        made.add_tflite_model(str(folder / MODEL), builder.TfLiteModelType.PREFILL_DECODE)
        entries = [
            builder.Metadata(key=key, value=value, dtype=builder.DType.STRING)
            for key, value in fixed.items()
        ]
        # The builder would write a random identity and the time of day.
        builder.populate_system_metadata = lambda _: entries
        with target.open("wb") as stream:
            made.build(stream)
    finally:
        metadata.unlink()
    with bundled(target) as inside:
        if hashlib.sha256(inside).hexdigest() != digest:
            raise StepFailed("the LiteRT-LM bundle does not hold the model that was put in")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _llm_metadata(folder: Path, context_length: int) -> bytes:
    """Begin and end of text, the chat template and the length of the cache, as LiteRT-LM reads
    them."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    from phipipe.models import tokenizer as transformers_tokenizer

    tokenizer = transformers_tokenizer.of_source(folder)
    metadata: Any = llm_metadata_pb2.LlmMetadata()
    metadata.max_num_tokens = context_length
    metadata.llm_model_type.generic_model.SetInParent()
    for token in ends(folder):
        metadata.stop_tokens.add().token_ids.ids.append(token)
    template = tokenizer.facts["chat_template"]
    if isinstance(template, str):
        affixes = _affixes(tokenizer.render, tokenizer.facts["bos_token"] or "")
        for role, (before, after) in affixes.items():
            part = getattr(metadata.prompt_templates, role)
            part.prefix, part.suffix = before, after
        if not affixes:
            metadata.jinja_prompt_template = template
    if _begins_with_bos(tokenizer, template):
        metadata.start_token.token_ids.ids.append(tokenizer.facts["bos_token_id"])
    return bytes(metadata.SerializeToString(deterministic=True))


def _begins_with_bos(tokenizer: LimitedTokenizer, template: object) -> bool:
    """Whether prompts really begin with the token that the tokenizer declares: LiteRT-LM would put
    it there."""
    begin = tokenizer.facts["bos_token_id"]
    if begin is None:
        return False
    texts = [tokenizer.encode("x", special=True)]
    if isinstance(template, str):
        texts.append(
            tokenizer.encode(tokenizer.render([{"role": "user", "content": "x"}], ask=False))
        )
    return any(ids[:1] == [begin] for ids in texts)


def _asked(render: Render, bos: str, *roles: str) -> str:
    """A chat of ``roles``, each saying ``MARK``, ready for the answer; without the token that
    begins every text."""
    messages = [{"role": role, "content": MARK} for role in roles]
    return render(messages).removeprefix(bos)


def _affixes(render: Render, bos: str) -> dict[str, tuple[str, str]]:
    """What the chat template puts before and after a message, by LiteRT-LM's names of roles; empty
    if it is not so.

    LiteRT-LM hands templates a list of parts where Phi's expect the text, and fails; with affixes
    it does not. What leads to the answer counts to the user's message: only the order of the pieces
    matters.
    """
    before, *rest = _asked(render, bos, "user").split(MARK)
    pieces = _asked(render, bos, "user", "assistant", "user").split(MARK)
    if (
        len(rest) != 1
        or len(pieces) != 4
        or pieces[::3] != [before, rest[0]]
        or pieces[1] != rest[0]
    ):
        return {}
    if not pieces[2].endswith(before):
        return {}
    found = {"user": (before, rest[0]), "model": ("", pieces[2].removesuffix(before))}
    try:
        parts = _asked(render, bos, "system", "user").split(MARK)
    except Raised:  # templates refuse roles that they do not know
        return found
    if len(parts) == 3 and parts[2] == rest[0] and parts[1].endswith(before):
        found["system"] = (parts[0], parts[1].removesuffix(before))
    return found


def ends(folder: Path) -> tuple[int, ...]:
    """Ids that end a text: of ``generation_config.json`` where it names any, else of
    ``config.json``."""
    for name in ("generation_config.json", "config.json"):
        found = (
            json.loads((folder / name).read_text("utf-8")).get("eos_token_id")
            if (folder / name).is_file()
            else None
        )
        if found is not None:
            return tuple(sorted(tokenizer_files.end_ids(found)))
    return ()


@contextlib.contextmanager
def bundled(path: Path) -> Iterator[memoryview]:
    """The ``.tflite`` inside a LiteRT-LM bundle, as a view of the mapped file; valid within the
    context."""
    begin, end = _section(path)
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as whole,
        whole[begin:end] as view,
    ):
        yield view


def _section(path: Path) -> tuple[int, int]:
    """First and last byte (exclusive) of the model in a bundle."""
    from litert_lm_builder import litertlm_header_schema_py_generated as schema
    from litert_lm_builder import litertlm_peek

    try:
        header: Any = litertlm_peek.read_litertlm_header(str(path), io.StringIO())
    except ValueError:
        raise StepFailed(f"`{path.name}` is not a LiteRT-LM bundle") from None
    sections = header.SectionMetadata()
    for i in range(sections.ObjectsLength()):
        section = sections.Objects(i)
        if section.DataType() == schema.AnySectionDataType.TFLiteModel:
            return section.BeginOffset(), section.EndOffset()
    raise StepFailed(f"`{path.name}` holds no model")
