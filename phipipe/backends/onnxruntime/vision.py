"""Vision for a folder of ONNX Runtime GenAI: its pipelines ``phi3v`` and ``phi4mm`` of
``vision.onnx``, ``embedding.onnx`` and decoder.

onnxruntime-genai's builder makes the decoder alone; upstream's other two come from edited copies of
the model's own code. Here the tower of ``phipipe.vision`` is exported, and the embedding is moved
out of the finished decoder's graph; its weight stays where it is, in the decoder's data file.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from phipipe.backends.arrays import Array
from phipipe.backends.onnxruntime import eyes, rounding
from phipipe.backends.onnxruntime import graph as onnx_graph
from phipipe.backends.onnxruntime.layout import CONFIG, EMBEDDING, LOOKUP, PROCESSOR, VISION
from phipipe.errors import StepFailed
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params

EMBEDS = "inputs_embeds"
OPSET = 17
EQUAL = 1e-3  # the export may differ from PyTorch by this share of the largest value
NEAR = 0.2  # the same, where the matrices were rounded
BLOCK = 32  # weights that share a scale
Arrays = Mapping[str, Array]


def vision(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the decoder ``inputs["model"]`` and the vision part of the checkpoint
    ``inputs["original"]`` in one folder.

    ``params``: bits (8, or None for fp32) of the vision part's matrices.

    Raises:
        StepFailed: the checkpoint's vision part is of another kind, or the export computes
            something else.
    """
    model, original = inputs["model"], inputs["original"]
    seeing = eyes.of(original)
    copy_beside(model, out)
    _export(seeing, original, out, params["bits"])
    _move_embedding(out, seeing.token)
    _configure(out, seeing)


def _export(seeing: eyes.Eyes, source: Path, out: Path, bits: int | None) -> None:
    """Write the tower of ``source``, and hold what it computes against PyTorch's."""
    tower, feeds = seeing.load(source), seeing.feeds()
    with torch.inference_mode():
        expected: npt.NDArray[np.float32] = tower(*feeds.values()).numpy()
    model = _traced(tower, feeds, seeing.counted, out / "exported")
    del tower
    if bits:
        model = _rounded(model, bits)
    onnx.save_model(
        model,
        out / VISION,
        save_as_external_data=True,
        location=f"{VISION}.data",
        size_threshold=1024,
    )
    arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
    _compare(out, arrays, expected, NEAR if bits else EQUAL)


def _traced(
    tower: torch.nn.Module,
    feeds: eyes.Feeds,
    counted: Mapping[str, Mapping[int, str]],
    scratch: Path,
) -> ModelProto:
    """``tower`` as a graph, by PyTorch's tracing exporter; ``scratch`` is gone afterwards."""
    axes = {**counted, "image_features": {0: "vectors"}}
    scratch.mkdir()
    with torch.inference_mode(), warnings.catch_warnings():
        # torch would rather have its newer exporter, which needs onnxscript
        warnings.simplefilter("ignore")
        torch.onnx.export(
            tower,
            tuple(feeds.values()),
            str(scratch / VISION),
            dynamo=False,
            dynamic_axes=axes,
            opset_version=OPSET,
            input_names=list(feeds),
            output_names=["image_features"],
        )
    model = onnx.load(scratch / VISION)
    shutil.rmtree(scratch)
    return model


def _rounded(model: ModelProto, bits: int) -> ModelProto:
    """``model`` with its matrices at ``bits`` bits, symmetric, as onnxruntime's own tool rounds
    them."""
    with rounding.quantizer_module() as nbits:
        settings = nbits.DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=bits
        )
        quantizer = nbits.MatMulNBitsQuantizer(model, algo_config=settings)
        quantizer.process()
    return quantizer.model.model


def _compare(
    folder: Path, feeds: Arrays, expected: npt.NDArray[np.float32], tolerance: float
) -> None:
    session = onnxruntime.InferenceSession(str(folder / VISION), providers=["CPUExecutionProvider"])
    (vectors,) = session.run(None, feeds)
    worst = (
        float(np.abs(vectors - expected).max() / np.abs(expected).max())
        if vectors.shape == expected.shape
        else np.inf
    )
    if not worst <= tolerance:
        raise StepFailed(
            f"the exported vision part differs from PyTorch's by {worst:.1e} of its largest value"
        )


def _move_embedding(folder: Path, token: int | None) -> None:
    """Take the lookup out of the decoder, which then asks for vectors, and put it into a graph of
    its own.

    That graph also lays the pictures' vectors where ``token`` is, or where ids are negative, as
    onnxruntime-genai marks them.
    """
    model = onnx_graph.load(folder)
    graph = model.graph
    lookup = next(node for node in graph.node if node.name == LOOKUP)
    if [node.name for node in graph.node if "input_ids" in node.input] != [lookup.name]:
        raise StepFailed("the decoder reads token ids elsewhere than in its embedding")
    moved = [node for node in graph.node if node.output[0] in lookup.input] + [lookup]
    hidden = json.loads((folder / CONFIG).read_text("utf-8"))["model"]["decoder"]["hidden_size"]
    element = next(t.data_type for t in graph.initializer if t.data_type in onnx_graph.FLOATS)
    embeds = helper.make_tensor_value_info(
        EMBEDS, element, ["batch_size", "sequence_length", hidden]
    )
    embedding = _embedding(model, moved, embeds, token)
    (folder / EMBEDDING).write_bytes(embedding.SerializeToString(deterministic=True))
    _without(model, moved, embeds)
    onnx_graph.save(model, folder)


def _embedding(
    model: ModelProto, moved: Sequence[NodeProto], embeds: ValueInfoProto, token: int | None
) -> ModelProto:
    """The nodes ``moved`` of ``model`` as a graph of their own, with vectors of pictures laid
    between those of ``input_ids``; its output is ``embeds``."""
    kind = embeds.type.tensor_type
    features = helper.make_tensor_value_info(
        "image_features", kind.elem_type, ["vectors", kind.shape.dim[-1].dim_value]
    )
    ids = helper.make_tensor_value_info(
        "input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]
    )
    placing = [
        helper.make_node("Max", ["input_ids", "zero"], ["known_ids"]),
        helper.make_node("Less" if token is None else "Equal", ["input_ids", "mark"], ["is_image"]),
        helper.make_node("NonZero", ["is_image"], ["image_axes"]),
        helper.make_node("Transpose", ["image_axes"], ["image_places"], perm=[1, 0]),
        helper.make_node("ScatterND", ["embedded", "image_places", "image_features"], [EMBEDS]),
    ]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in moved]
    nodes[-1].input[list(nodes[-1].input).index("input_ids")] = "known_ids"
    nodes[-1].output[0] = "embedded"
    read = {name for node in nodes for name in node.input}
    held = [tensor for tensor in model.graph.initializer if tensor.name in read]
    numbers = [
        helper.make_tensor(name, TensorProto.INT64, [], [value])
        for name, value in (("zero", 0), ("mark", token or 0))
    ]
    graph = helper.make_graph(
        [placing[0], *nodes, *placing[1:]],
        "embedding",
        [ids, features],
        [embeds],
        [*held, *numbers],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _without(model: ModelProto, moved: Sequence[NodeProto], embeds: ValueInfoProto) -> None:
    """Drop the nodes ``moved``, the last of which is the lookup: its output becomes the graph's
    input ``embeds``."""
    graph, produced = model.graph, moved[-1].output[0]
    for node in moved:
        if node is moved[-1] or not any(
            set(node.output) & set(other.input) for other in graph.node if other not in moved
        ):
            graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [EMBEDS if name == produced else name for name in node.input]
    kept = [value for value in graph.input if value.name != "input_ids"]
    graph.ClearField("input")
    graph.input.extend([embeds, *kept])
    used = {name for node in graph.node for name in node.input}
    held = [tensor for tensor in graph.initializer if tensor.name in used]
    graph.ClearField("initializer")
    graph.initializer.extend(held)


def _configure(folder: Path, seeing: eyes.Eyes) -> None:
    """Tell onnxruntime-genai of the three graphs, and how it lays out a picture."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    model = config["model"]
    inputs = {key: value for key, value in model["decoder"]["inputs"].items() if key != "input_ids"}
    model["decoder"]["inputs"] = {EMBEDS: EMBEDS, **inputs}
    ids, features = {"input_ids": "input_ids"}, {"image_features": "image_features"}
    model["embedding"] = {
        "filename": EMBEDDING,
        "inputs": ids | features,
        "outputs": {EMBEDS: EMBEDS},
    }
    model["vision"] = {
        "filename": VISION,
        "config_filename": PROCESSOR,
        "inputs": dict(seeing.inputs),
        "outputs": features,
    }
    model |= {"type": seeing.pipeline, **seeing.settings}
    _write_json(folder / CONFIG, config)
    _write_json(folder / PROCESSOR, seeing.processor)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
