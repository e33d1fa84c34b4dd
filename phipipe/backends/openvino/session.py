"""OpenVINO's side of a folder: its graph and weights, logits, greedy generation, its tokenizer."""

from __future__ import annotations

import json
import math
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe.backends.base import absent
from phipipe.errors import StepFailed
from phipipe.models import tokenizer_files
from phipipe.sandbox import tokenizer as limited_tokenizer
from phipipe.sandbox.tokenizer import LimitedTokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MODEL = "openvino_model.xml"
# Of a model that sees; the names are openvino-genai's.
LANGUAGE, EMBEDDING = "openvino_language_model.xml", "openvino_text_embeddings_model.xml"
VISION, PROJECTION = "openvino_vision_embeddings_model.xml", "openvino_vision_projection_model.xml"
EMBEDS = "inputs_embeds"
# Arithmetic and cache in fp32, activations never rounded to 8 bits: what is left is what the stored
# weights cost.
FAITHFUL = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
}
BITS = {"u4": 4, "i4": 4, "u8": 8, "i8": 8}
PASSED = ("Convert", "Reshape", "Transpose")  # between a constant and the node that uses it


def quiet() -> None:
    """Keep OpenVINO's telemetry out: it writes into the home folder and looks for the network, both
    at import."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def read(folder: Path) -> Any:
    """The folder's graph; weights are mapped, not loaded."""
    quiet()
    import openvino

    return openvino.Core().read_model(str(folder / MODEL))


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A stored matrix, by the node that reads it first. ``group`` is 0 for floats; a row's length
    is ``width``."""

    name: str
    constant: str
    embedding: bool
    kind: str  # OpenVINO's element type
    size: int
    width: int
    group: int
    zero_point: bool
    head: bool = False  # the last MatMul reads it: the LM head, or an embedding tied to it


def weights(model: Any) -> list[Weight]:
    """Matrices that MatMul and Gather nodes read, in the order of computation; shared ones once."""
    found: dict[str, Weight] = {}
    last: Weight | None = None
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        for port in {"MatMul": (0, 1), "Gather": (0,)}.get(kind, ()):
            weight = _weight(node, node.input_value(port).get_node())
            if weight:
                last = found.setdefault(weight.constant, weight)
    return [replace(weight, head=weight is last) for weight in found.values()]


def _weight(reader: Any, node: Any) -> Weight | None:
    """The matrix behind ``node``: a constant, perhaps less a zero point, perhaps times a scale."""
    node, scale, zero = _behind(node), None, None
    if node.get_type_name() == "Multiply":
        node, scale = (_behind(node.input_value(port).get_node()) for port in (0, 1))
    if node.get_type_name() == "Subtract":
        node, zero = (_behind(node.input_value(port).get_node()) for port in (0, 1))
    parts = [part for part in (node, scale, zero) if part is not None]
    if any(part.get_type_name() != "Constant" for part in parts):
        return None
    shape = list(node.get_output_shape(0))
    if sum(length > 1 for length in shape) < 2:  # rotary frequencies and the like
        return None
    return Weight(
        name=reader.get_friendly_name(),
        constant=node.get_friendly_name(),
        embedding=reader.get_type_name() == "Gather",
        kind=node.get_element_type().get_type_name(),
        size=math.prod(shape),
        width=shape[-1]
        if scale is None or len(scale.get_output_shape(0)) < 3
        else shape[-1] * shape[-2],
        group=0 if scale is None else math.prod(shape) // math.prod(scale.get_output_shape(0)),
        zero_point=zero is not None,
    )


def _behind(node: Any) -> Any:
    while node.get_type_name() in PASSED:
        node = node.input_value(0).get_node()
    return node


def verify(before: Sequence[Weight], after: Sequence[Weight], params: Mapping[str, Any]) -> None:
    """``after`` holds the matrices of ``before``, stored as ``params`` (bits and options) ask.

    Raises:
        StepFailed: names the first that is not as it should be.
    """
    shapes = [
        {weight.name: (weight.size, weight.width) for weight in found} for found in (before, after)
    ]
    if shapes[0] != shapes[1]:
        changed = sorted(
            name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)
        )
        raise StepFailed(f"NNCF changed what `{changed[0]}` reads")
    kind = ("i" if params["symmetric"] else "u") + str(params["bits"])
    if params["bits"] == 8:
        for weight in after:
            _check(weight, {kind}, -1)
        return
    floats = {weight.name: weight.kind for weight in before}
    ranked = ratio_defining(after, params["all_layers"])
    for weight in after:
        rest = {"none": floats[weight.name], "int8_sym": "i8", "int8_asym": "u8"}[params["backup"]]
        allowed = {kind, rest} if params["ratio"] < 1 else {kind}
        _check(weight, allowed if weight in ranked else {rest}, params["group_size"])
    total = sum(weight.size for weight in ranked)
    share = sum(weight.size for weight in ranked if weight.kind == kind) / total
    largest = max(weight.size for weight in ranked) / total
    if not 0 < share <= params["ratio"] or share + largest < params["ratio"] - 1e-9:
        raise StepFailed(
            f"NNCF gave 4 bits to {share:.1%} of the weights, not {params['ratio']:.1%}"
        )


def verify_unquantized(found: Sequence[Weight], kind: str) -> None:
    """There are matrices, and each is stored as ``kind`` ("f16", "f32").

    Raises:
        StepFailed: names the first that is not.
    """
    if not found:
        raise StepFailed("the graph has no weights")
    for weight in found:
        _check(weight, {kind}, -1)


def ratio_defining(found: Sequence[Weight], all_layers: bool) -> list[Weight]:
    """The matrices that ``ratio`` counts: NNCF leaves out embeddings and the LM head, unless told
    otherwise."""
    return [weight for weight in found if all_layers or not (weight.embedding or weight.head)]


def _check(weight: Weight, kinds: set[str], group_size: int) -> None:
    if weight.kind not in kinds:
        raise StepFailed(
            f"`{weight.name}` is stored as {weight.kind}, not {' or '.join(sorted(kinds))}"
        )
    if weight.kind not in BITS:
        return
    group = weight.width if group_size == -1 or BITS[weight.kind] == 8 else group_size
    if weight.group != group:
        raise StepFailed(f"`{weight.name}` has a scale per {weight.group} weights, not {group}")
    if weight.zero_point != weight.kind.startswith("u"):
        raise StepFailed(
            f"`{weight.name}` has {'a' if weight.zero_point else 'no'} zero point for {weight.kind}"
        )


def feeds(tokens: Sequence[int] | npt.NDArray[Any], before: int = 0) -> dict[str, Any]:
    """Inputs for one pass over ``tokens``, of which the cache holds ``before`` already."""
    import numpy as np

    count = len(tokens)
    return {
        "input_ids": np.asarray(tokens, np.int64)[None],
        "attention_mask": np.ones((1, before + count), np.int64),
        "position_ids": np.arange(before, before + count, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }


class Session:
    """``Runtime`` over a folder: on the CPU in fp32 arithmetic, with "intel-gpu" on the GPU as it
    computes by default.

    Raises:
        TargetError: OpenVINO sees no GPU.
    """

    GRAPH = MODEL

    def __init__(self, folder: Path, api: str = "cpu") -> None:
        quiet()
        import openvino

        config = json.loads((folder / "generation_config.json").read_text("utf-8"))
        self._ends = set(tokenizer_files.end_ids(config.get("eos_token_id")))
        self._core = openvino.Core()
        gpu = api == "intel-gpu"
        if gpu and not any(name.startswith("GPU") for name in self._core.available_devices):
            raise absent("Intel GPU", "OpenVINO")
        self._where = ("GPU", {}) if gpu else ("CPU", FAITHFUL)
        self._request = self._compiled(folder / self.GRAPH)

    def _compiled(self, path: Path) -> Any:
        return self._core.compile_model(str(path), *self._where).create_infer_request()

    def _feeds(self, tokens: Sequence[int], before: int) -> dict[str, Any]:
        return feeds(tokens, before)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        self._request.reset_state()
        return self._run(self._feeds(tokens, 0))

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        self._request.reset_state()
        pending, done = list(prompt), 0
        for _ in range(limit):
            token = int(self._run(self._feeds(pending, done))[-1].argmax())
            yield token
            if token in self._ends:
                return
            pending, done = [token], done + len(pending)

    def _run(self, inputs: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        import numpy as np

        self._request.infer(dict(inputs))
        made: npt.NDArray[np.float32] = np.array(
            self._request.get_tensor("logits").data[0], np.float32
        )
        return made

    def close(self) -> None:
        self._request = self._core = None


def tokenizer(folder: Path) -> LimitedTokenizer:
    """The folder's tokenizer as openvino-genai reads it, in a limited child."""
    return limited_tokenizer.open_in_child(
        "phipipe.backends.openvino.session:GenaiTokenizer", folder, ["openvino", "openvino_genai"]
    )


class GenaiTokenizer:
    """For a limited child: ``Tokenizer`` as openvino-genai reads it; it does not load the
    weights."""

    def __init__(self, folder: str) -> None:
        quiet()
        import openvino_genai

        self._tokenizer = openvino_genai.Tokenizer(folder)

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).input_ids.data[0]
        return [int(token) for token in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        chat = [dict(message) for message in messages]
        return str(self._tokenizer.apply_chat_template(chat, add_generation_prompt=True))


class Pipeline:
    """``Runtime`` over openvino-genai's pipeline, as programs use it: the way to an NPU, which
    yields tokens only."""

    def __init__(self, folder: Path, device: str, settings: Mapping[str, Any]) -> None:
        quiet()
        import openvino_genai

        self._pipeline = openvino_genai.LLMPipeline(str(folder), device, **settings)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        raise StepFailed("openvino-genai's pipeline yields tokens, and no logits")

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        """Tokens as they come."""
        import numpy as np
        import openvino

        ids = openvino.Tensor(np.asarray(prompt, np.int64)[None])
        config = greedy(self._pipeline.get_generation_config(), limit)
        yield from streamed(lambda streamer: self._pipeline.generate(ids, config, streamer))

    def close(self) -> None:
        self._pipeline = None


def greedy(config: Any, limit: int) -> Any:
    """A pipeline's generation ``config``, set to at most ``limit`` of the likeliest tokens."""
    config.do_sample, config.num_beams, config.max_new_tokens = False, 1, limit
    return config


def streamed(call: Callable[[Any], object]) -> Iterator[int]:
    """The tokens of ``call``, a pipeline's, which is given a streamer: it runs in a thread and
    hands each one over."""
    import openvino_genai

    ready: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

    class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
        def write(self, token: int | list[int]) -> Any:
            for one in token if isinstance(token, list) else [token]:
                ready.put(int(one))
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    def run() -> None:
        try:
            call(Streamer())
            ready.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again where the tokens are wanted)
            ready.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while (token := ready.get()) is not None:
        if isinstance(token, BaseException):
            raise token
        yield token
    thread.join()


def furthest(folder: Path, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """How much less likely than the likeliest, in nats, the worst token of a greedy ``answer`` is
    by fp32 logits."""
    session = Session(folder)
    rows = session.logits([*prompt, *answer])[len(prompt) - 1 : -1]
    session.close()
    return max(
        (float(row.max() - row[token]) for row, token in zip(rows, answer, strict=True)),
        default=0.0,
    )
