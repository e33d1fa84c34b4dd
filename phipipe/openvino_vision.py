"""Eyes for a folder of OpenVINO: the graphs that openvino-genai's ``VLMPipeline`` reads for models of type ``phi3_v``.

The finished language model is cut in two at its embedding, the tower of ``vision_tower`` is converted in two parts; the
vectors between and after rows lie in ``config.json``. optimum-intel makes the same folder only with an old transformers
and the model's own code.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe import openvino_graph, openvino_session, vision
from phipipe.backends.base import Inputs, Params
from phipipe.errors import StepFailed

if TYPE_CHECKING:
    from phipipe.vision_tower import Tower

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
EQUAL, EQUAL_ROUNDED = 1e-3, 0.2  # the graphs may differ from PyTorch by this share of the largest value
WIDTH = 1024  # of the eyes: openvino-genai has the shapes of no others


def eyes(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the language model ``inputs["model"]`` and the eyes of the checkpoint ``inputs["original"]`` in one folder.

    ``params``: bits (8, or None for the width of the language model) of the eyes' matrices.

    Raises:
        StepFailed: the checkpoint's vision part is of another kind, or a converted graph computes something else.
    """
    from phipipe import vision_tower

    openvino_session.quiet()
    model = inputs["model"]
    for path in sorted(model.iterdir()):
        if path.stem != Path(openvino_session.MODEL).stem:
            shutil.copyfile(path, out / path.name)
    _cut_at_embedding(model, out)
    tower = vision_tower.load(inputs["original"])
    if tower.clip.class_embedding.shape[0] != WIDTH:
        raise StepFailed(f"openvino-genai knows eyes of width {WIDTH}, not {tower.clip.class_embedding.shape[0]}")
    _convert(tower, out, params["bits"], wide=_stored_wide(model))
    _configure(inputs["original"], out, tower)
    for path in sorted(out.glob("*.xml")):
        openvino_graph.number_nodes(path)


def _stored_wide(model: Path) -> bool:
    return all(weight.kind == "f32" for weight in openvino_session.weights(openvino_session.read(model)))


def _cut_at_embedding(model: Path, out: Path) -> None:
    """Two graphs of one: token ids to vectors, and vectors to logits."""
    import openvino

    whole = openvino_session.read(model)
    ids, lookup = _lookup(whole)
    hidden = lookup.get_output_partial_shape(0)[2]
    shape = openvino.PartialShape([-1, -1, hidden])
    vectors = openvino.opset13.parameter(shape, openvino.Type.f32, name=openvino_session.EMBEDS)
    vectors.output(0).get_tensor().set_names({openvino_session.EMBEDS})
    for reader in lookup.output(0).get_target_inputs():
        reader.replace_source_output(vectors.output(0))
    for reader in ids.output(0).get_target_inputs():
        if reader.get_node().get_type_name() == "ShapeOf":  # of which only the first two dimensions are read
            reader.replace_source_output(vectors.output(0))
    whole.add_parameters([vectors])
    whole.remove_parameter(ids)
    whole.validate_nodes_and_infer_types()
    openvino.save_model(whole, str(out / openvino_session.LANGUAGE), compress_to_fp16=False)
    ids, lookup = _lookup(openvino_session.read(model))
    ids.output(0).get_tensor().set_names({"input"})
    lookup.output(0).get_tensor().set_names({openvino_session.EMBEDS})
    embedding = openvino.Model([lookup.output(0)], [ids], "embedding")
    openvino.save_model(embedding, str(out / openvino_session.EMBEDDING), compress_to_fp16=False)


def _lookup(model: Any) -> tuple[Any, Any]:
    """The parameter of token ids, and the node that looks up their vectors in fp32.

    Raises:
        StepFailed: ids are read elsewhere too, or vectors are of another type.
    """
    import openvino

    ids = next(node for node in model.get_parameters() if "input_ids" in node.output(0).get_names())
    found = []
    for reader in ids.output(0).get_target_inputs():
        if reader.get_node().get_type_name() == "Convert":
            found += [next_one.get_node() for next_one in reader.get_node().output(0).get_target_inputs()]
        elif reader.get_node().get_type_name() != "ShapeOf":
            found.append(reader.get_node())
    if len(found) != 1 or found[0].get_type_name() != "Gather":
        raise StepFailed("the graph reads token ids elsewhere than in its embedding")
    if found[0].get_output_element_type(0) != openvino.Type.f32:
        raise StepFailed(f"the graph's embedding gives {found[0].get_output_element_type(0)}, not f32")
    return ids, found[0]


def _convert(tower: Tower, out: Path, bits: int | None, wide: bool) -> None:
    """The tower's two parts: crops to patches, and joined patches to vectors of the language model."""
    import torch

    from phipipe import vision_tower

    draw = torch.Generator().manual_seed(0)
    crops = torch.randn(2, 3, vision_tower.CROP, vision_tower.CROP, generator=draw)
    joined = torch.randn(1, 9, 4 * WIDTH, generator=draw)
    parts = (
        (openvino_session.EYES, tower.clip, "pixel_values", crops, [-1, *crops.shape[1:]]),
        (openvino_session.PROJECTION, tower.img_projection, "input", joined, [-1, -1, 4 * WIDTH]),
    )
    for name, module, taken, example, shape in parts:
        _convert_part(out / name, module, taken, example, shape, bits, wide)


def _convert_part(
    path: Path, module: Any, taken: str, example: Any, shape: list[int], bits: int | None, wide: bool
) -> None:
    """One graph of ``module``, which reads ``taken`` of ``shape``, at ``bits`` bits or in fp16, if not ``wide``.

    Raises:
        StepFailed: for ``example`` it gives something else than ``module``.
    """
    import nncf
    import numpy as np
    import openvino
    import torch

    with torch.inference_mode(), openvino_graph.one_thread():
        expected = module(example).numpy()
        model = openvino.convert_model(module, example_input=example, input=[openvino.PartialShape(shape)])
    model.inputs[0].get_tensor().set_names({taken})
    model.outputs[0].get_tensor().set_names({"last_hidden_state"})
    if bits:
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode[f"INT{bits}_SYM"])
    openvino.save_model(model, str(path), compress_to_fp16=not bits and not wide)
    compiled = openvino.Core().compile_model(str(path), "CPU", openvino_session.FAITHFUL)
    found = compiled(example.numpy())[0]
    worst = float(np.abs(found - expected).max() / np.abs(expected).max()) if found.shape == expected.shape else np.inf
    if not worst <= (EQUAL_ROUNDED if bits else EQUAL if wide else 10 * EQUAL):
        raise StepFailed(f"`{path.name}` differs from PyTorch by {worst:.1e} of its largest value")


def _configure(original: Path, out: Path, tower: Tower) -> None:
    """What the pipeline reads besides graphs; the names are Phi-3-vision's own."""
    from phipipe import vision_tower

    config = json.loads((original / CONFIG).read_text("utf-8"))
    config.pop("auto_map", None)
    config |= {"sub_GN": [[[tower.row_end.tolist()]]], "glb_GN": [[tower.between.tolist()]]}
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    processor = {
        "image_processor_type": "Phi3VImageProcessor",
        "num_crops": vision.CROPS["openvino"],
        "num_img_tokens": vision_tower.SIDE**2,
        "image_mean": vision_tower.MEAN,
        "image_std": vision_tower.DEVIATION,
    }
    (out / PROCESSOR).write_text(json.dumps(processor, indent=2) + "\n", "utf-8")
