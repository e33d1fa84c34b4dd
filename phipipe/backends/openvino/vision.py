"""Vision for a folder of OpenVINO: the graphs that openvino-genai's ``VLMPipeline`` reads for
``phi3_v`` and ``phi4mm``.

The finished language model is cut in two at its embedding, the tower is converted in two parts; the
vectors between and after rows lie in ``config.json``. optimum-intel makes the same folder only with
an old transformers and the model's own code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch

from phipipe.backends.openvino import graph, session, stored
from phipipe.backends.openvino.files import EMBEDDING, LANGUAGE, MODEL, PROJECTION, VISION
from phipipe.errors import StepFailed
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Json, Params
from phipipe.vision import clip, kinds, siglip

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
EQUAL, EQUAL_ROUNDED = 1e-3, 0.2  # how far graphs may be from PyTorch, of the largest value
WIDTH = 1024  # of the eyes of Phi-3-vision: openvino-genai has the shapes of no others


@dataclass(frozen=True, kw_only=True)
class Part:
    """A graph to be: what computes it, and for each of its inputs the name, an example, and a shape
    with -1 for any."""

    file: str
    module: torch.nn.Module
    inputs: tuple[tuple[str, torch.Tensor, list[int]], ...]


# The tower; crops to patches, and joined patches to vectors of the language model; the settings of
# pictures.
Converted = tuple[torch.nn.Module, tuple[Part, Part], Json]


def vision_graphs(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the language model ``inputs["model"]`` and the eyes of the checkpoint
    ``inputs["original"]`` in one folder.

    ``params``: bits (8, or None for the width of the language model) of the eyes' matrices.

    Raises:
        StepFailed: the checkpoint's vision part is of another kind, or a converted graph computes
            something else.
    """
    model, original = inputs["model"], inputs["original"]
    copy_beside(model, out, leave=lambda name: Path(name).stem == Path(MODEL).stem)
    _cut_at_embedding(model, out)
    config = json.loads((original / CONFIG).read_text("utf-8"))
    parts_of = _phi3_parts if config["architectures"][0] == kinds.PHI3 else _phi4_parts
    tower, parts, processor = parts_of(original)
    for part in parts:
        _convert(part, out, params["bits"], wide=_stored_wide(model))
    _configure(config, processor, out, tower)
    for path in sorted(out.glob("*.xml")):
        graph.number_nodes(path)


def _phi3_parts(original: Path) -> Converted:
    """Of Phi-3-vision and Phi-3.5-vision."""
    tower = clip.load(original)
    width = tower.clip.class_embedding.shape[0]
    if width != WIDTH:
        raise StepFailed(f"openvino-genai knows eyes of width {WIDTH}, not {width}")
    draw = torch.Generator().manual_seed(0)
    crops = torch.randn(2, 3, clip.CROP, clip.CROP, generator=draw)
    joined = torch.randn(1, 9, 4 * width, generator=draw)
    settings = {
        "image_processor_type": "Phi3VImageProcessor",
        "num_crops": kinds.KINDS[kinds.PHI3].crops,
        "num_img_tokens": clip.SIDE**2,
        "image_mean": clip.MEAN,
        "image_std": clip.DEVIATION,
    }
    seen = Part(
        file=VISION,
        module=tower.clip,
        inputs=(("pixel_values", crops, [-1, *crops.shape[1:]]),),
    )
    return tower, (seen, _projection(tower, joined)), settings


def _phi4_parts(original: Path) -> Converted:
    """Of Phi-4-multimodal; patches of padding are masked."""
    tower = siglip.load(original)
    side = siglip.PATCHES
    draw = torch.Generator().manual_seed(0)
    crops = torch.randn(2, 3, siglip.CROP, siglip.CROP, generator=draw)
    masks = torch.ones(2, side, side, dtype=torch.bool)
    masks[1, side // 2 :] = False
    places = siglip.positions(masks)
    seen = Part(
        file=VISION,
        module=tower.siglip,
        inputs=(
            ("pixel_values", crops, [-1, *crops.shape[1:]]),
            ("patch_attention_mask", masks, [-1, side, side]),
            ("patch_position_ids", places, [-1, side * side]),
        ),
    )
    joined = torch.randn(1, 9, tower.row_end.shape[0], generator=draw)
    settings = {
        "image_processor_type": "Phi4MMImageProcessor",
        "dynamic_hd": kinds.KINDS[kinds.PHI4].crops,
        "image_mean": [siglip.MEAN] * 3,
        "image_std": [siglip.DEVIATION] * 3,
    }
    return tower, (seen, _projection(tower, joined)), settings


def _projection(tower: torch.nn.Module, example: torch.Tensor) -> Part:
    shape = [-1, -1, example.shape[2]]
    return Part(
        file=PROJECTION,
        module=tower.img_projection,
        inputs=(("input", example, shape),),
    )


def _stored_wide(model: Path) -> bool:
    return all(weight.kind == "f32" for weight in stored.weights(stored.read(model)))


def _cut_at_embedding(model: Path, out: Path) -> None:
    """Two graphs of one: token ids to vectors, and vectors to logits."""
    whole = stored.read(model)
    ids, lookup = _lookup(whole)
    hidden = lookup.get_output_partial_shape(0)[2]
    shape = openvino.PartialShape([-1, -1, hidden])
    vectors = openvino.opset13.parameter(shape, openvino.Type.f32, name=session.EMBEDS)
    vectors.output(0).get_tensor().set_names({session.EMBEDS})
    for reader in lookup.output(0).get_target_inputs():
        reader.replace_source_output(vectors.output(0))
    for reader in ids.output(0).get_target_inputs():
        # of which only the first two dimensions are read
        if reader.get_node().get_type_name() == "ShapeOf":
            reader.replace_source_output(vectors.output(0))
    whole.add_parameters([vectors])
    whole.remove_parameter(ids)
    whole.validate_nodes_and_infer_types()
    openvino.save_model(whole, str(out / LANGUAGE), compress_to_fp16=False)
    ids, lookup = _lookup(stored.read(model))
    ids.output(0).get_tensor().set_names({"input"})
    lookup.output(0).get_tensor().set_names({session.EMBEDS})
    embedding = openvino.Model([lookup.output(0)], [ids], "embedding")
    openvino.save_model(embedding, str(out / EMBEDDING), compress_to_fp16=False)


def _lookup(model: openvino.Model) -> tuple[openvino.Node, openvino.Node]:
    """The parameter of token ids, and the node that looks up their vectors in fp32.

    Raises:
        StepFailed: ids are read elsewhere too, or vectors are of another type.
    """
    ids = next(node for node in model.get_parameters() if "input_ids" in node.output(0).get_names())
    readers = []
    for node in _readers(ids):
        if node.get_type_name() == "Convert":
            readers += _readers(node)
        elif node.get_type_name() != "ShapeOf":
            readers.append(node)
    if len(readers) != 1 or readers[0].get_type_name() != "Gather":
        raise StepFailed("the graph reads token ids elsewhere than in its embedding")
    kind = readers[0].get_output_element_type(0)
    if kind != openvino.Type.f32:
        raise StepFailed(f"the graph's embedding gives {kind}, not f32")
    return ids, readers[0]


def _readers(node: openvino.Node) -> list[openvino.Node]:
    return [port.get_node() for port in node.output(0).get_target_inputs()]


def _convert(part: Part, out: Path, bits: int | None, wide: bool) -> None:
    """The graph of ``part``, at ``bits`` bits or in fp16, if not ``wide``.

    Raises:
        StepFailed: for the examples it gives something else than its module.
    """
    names, examples, shapes = zip(*part.inputs, strict=True)
    with torch.inference_mode(), graph.one_thread():
        expected = part.module(*examples).numpy()
        taken = [openvino.PartialShape(shape) for shape in shapes]
        model = openvino.convert_model(part.module, example_input=examples, input=taken)
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({"last_hidden_state"})
    if bits:
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode[f"INT{bits}_SYM"])
    openvino.save_model(model, str(out / part.file), compress_to_fp16=not bits and not wide)
    compiled = openvino.Core().compile_model(str(out / part.file), "CPU", session.FAITHFUL)
    actual = compiled([example.numpy() for example in examples])[0]
    worst = np.inf
    if actual.shape == expected.shape:
        worst = float(np.abs(actual - expected).max() / np.abs(expected).max())
    if not worst <= (EQUAL_ROUNDED if bits else EQUAL if wide else 10 * EQUAL):
        raise StepFailed(f"`{part.file}` differs from PyTorch by {worst:.1e} of its largest value")


def _configure(config: Json, processor: Json, out: Path, tower: torch.nn.Module) -> None:
    """What the pipeline reads besides graphs; the names are the originals' own."""
    config.pop("auto_map", None)
    config |= {"sub_GN": [[[tower.row_end.tolist()]]], "glb_GN": [[tower.between.tolist()]]}
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (out / PROCESSOR).write_text(json.dumps(processor, indent=2) + "\n", "utf-8")
