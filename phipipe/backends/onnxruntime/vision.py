"""Eyes for a folder of ONNX Runtime GenAI: its ``phi3v`` pipeline of ``vision.onnx``,
``embedding.onnx`` and decoder.

onnxruntime-genai's builder makes the decoder alone; upstream's other two come from edited copies of
the model's own code. Here the tower of ``vision_tower`` is exported, and the embedding is moved out
of the finished decoder's graph; its weight stays where it is, in the decoder's data file.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from phipipe.backends.onnxruntime import graph as onnx_graph
from phipipe.backends.onnxruntime import rounding
from phipipe.errors import StepFailed
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params

CONFIG, PROCESSOR = "genai_config.json", "processor_config.json"
VISION, EMBEDDING = "vision.onnx", "embedding.onnx"
EMBEDS = "inputs_embeds"
OPSET, IR_VERSION = 17, 10
EQUAL = 1e-3  # the export may differ from PyTorch by this share of the largest value
BLOCK = 32  # weights that share a scale
# onnxruntime-extensions' pipeline; its last operation always cuts into 16 crops at most, whatever
# it is told.
_OPERATIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("decode_image", "DecodeImage", {"color_space": "BGR"}),
    ("convert_to_rgb", "ConvertRGB", {}),
    ("phi3_image_transform", "Phi3ImageTransform", {"num_crops": 16, "num_img_tokens": 144}),
)


def vision(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the decoder ``inputs["model"]`` and the eyes of the checkpoint ``inputs["original"]``
    in one folder.

    ``params``: bits (8, or None for fp32) of the eyes' matrices.

    Raises:
        StepFailed: the checkpoint's vision part is of another kind, or the export computes
            something else.
    """
    model = inputs["model"]
    copy_beside(model, out)
    _export(inputs["original"], out, params["bits"])
    _move_embedding(out)
    _configure(out)


def _export(source: Path, out: Path, bits: int | None) -> None:
    import onnx
    import torch

    from phipipe.vision import clip

    tower = clip.load(source)
    crop = clip.CROP
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([[crop, 2 * crop], [crop, crop]])
    pixels = torch.randn(len(sizes), 3, 3, crop, crop, generator=generator)
    scratch = out / "exported"
    scratch.mkdir()
    names = {"input_names": ["pixel_values", "image_sizes"], "output_names": ["image_features"]}
    axes = {
        "pixel_values": {0: "images", 1: "crops"},
        "image_sizes": {0: "images"},
        "image_features": {0: "vectors"},
    }
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch would rather have its newer exporter, which needs onnxscript
        target = str(scratch / VISION)
        torch.onnx.export(
            tower,
            (pixels, sizes),
            target,
            dynamo=False,
            dynamic_axes=axes,
            opset_version=OPSET,
            **names,
        )
        expected = tower(pixels, sizes).numpy()
    del tower
    made = onnx.load(scratch / VISION)
    shutil.rmtree(scratch)
    if bits:
        made = _rounded(made, bits)
    onnx.save_model(
        made,
        out / VISION,
        save_as_external_data=True,
        location=f"{VISION}.data",
        size_threshold=1024,
    )
    _compare(
        out,
        {"pixel_values": pixels.numpy(), "image_sizes": sizes.numpy()},
        expected,
        EQUAL if bits is None else 0.2,
    )


def _rounded(model: Any, bits: int) -> Any:
    """``model`` with its matrices at ``bits`` bits, symmetric, as onnxruntime's own tool rounds
    them."""
    with rounding.quantizer_module() as nbits:
        settings = nbits.DefaultWeightOnlyQuantConfig(
            block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=bits
        )
        made = nbits.MatMulNBitsQuantizer(model, algo_config=settings)
        made.process()
    return made.model.model


def _compare(folder: Path, feeds: dict[str, Any], expected: Any, tolerance: float) -> None:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / VISION), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feeds)
    worst = (
        float(np.abs(found - expected).max() / np.abs(expected).max())
        if found.shape == expected.shape
        else np.inf
    )
    if not worst <= tolerance:
        raise StepFailed(
            f"the exported vision part differs from PyTorch's by {worst:.1e} of its largest value"
        )


def _move_embedding(folder: Path) -> None:
    """Take the lookup out of the decoder, which then asks for vectors, and put it into a graph of
    its own.

    That graph also lays the eyes' vectors where ids are negative, as onnxruntime-genai marks them.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx_graph.load(folder)
    graph = model.graph
    lookup = next(node for node in graph.node if node.name == rounding.EMBEDDING)
    if [node.name for node in graph.node if "input_ids" in node.input] != [lookup.name]:
        raise StepFailed("the decoder reads token ids elsewhere than in its embedding")
    moved = [node for node in graph.node if node.output[0] in lookup.input] + [lookup]
    hidden = json.loads((folder / CONFIG).read_text("utf-8"))["model"]["decoder"]["hidden_size"]
    element = next(t.data_type for t in graph.initializer if t.data_type in onnx_graph.FLOATS)
    ids = helper.make_tensor_value_info(
        "input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]
    )
    features = helper.make_tensor_value_info("image_features", element, ["vectors", hidden])
    embeds = helper.make_tensor_value_info(
        EMBEDS, element, ["batch_size", "sequence_length", hidden]
    )
    placing = [
        helper.make_node("Max", ["input_ids", "zero"], ["known_ids"]),
        helper.make_node("Less", ["input_ids", "zero"], ["is_image"]),
        helper.make_node("NonZero", ["is_image"], ["image_axes"]),
        helper.make_node("Transpose", ["image_axes"], ["image_places"], perm=[1, 0]),
        helper.make_node("ScatterND", ["embedded", "image_places", "image_features"], [EMBEDS]),
    ]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in moved]
    nodes[-1].input[list(lookup.input).index("input_ids")] = "known_ids"
    nodes[-1].output[0] = "embedded"
    read = {name for node in nodes for name in node.input}
    held = [tensor for tensor in graph.initializer if tensor.name in read]
    zero = helper.make_tensor("zero", TensorProto.INT64, [], [0])
    made = helper.make_graph(
        [placing[0], *nodes, *placing[1:]], "embedding", [ids, features], [embeds], [*held, zero]
    )
    whole = helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
    (folder / EMBEDDING).write_bytes(whole.SerializeToString(deterministic=True))
    _without(model, moved, embeds)
    onnx_graph.save(model, folder)


def _without(model: Any, moved: list[Any], embeds: Any) -> None:
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


def _configure(folder: Path) -> None:
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
    taken = {"pixel_values": "pixel_values", "image_sizes": "image_sizes"}
    model["vision"] = {"filename": VISION, "inputs": taken, "outputs": features}
    model["type"] = "phi3v"
    _write(folder / CONFIG, config)
    domain = {"domain": "com.microsoft.extensions"}
    operations = [
        {"name": n, **domain, "type": t, **({"attrs": a} if a else {})} for n, t, a in _OPERATIONS
    ]
    transforms = [{"operation": operation} for operation in operations]
    _write(
        folder / PROCESSOR, {"processor": {"name": "image_processing", "transforms": transforms}}
    )


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
