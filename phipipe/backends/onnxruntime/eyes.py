"""The eyes that onnxruntime-genai has pipelines for: how they are loaded and traced, and what the
runtime is told of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from phipipe.steps import Json
from phipipe.vision import clip, kinds, siglip
from phipipe.vision.siglip_batch import Batch

Feeds = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """``load`` gives what computes vectors of a checkpoint's pictures, ``feeds`` two pictures of
    chance for it. ``counted``: the names of axes that vary. ``pipeline`` is onnxruntime-genai's
    name, ``inputs`` its names for those of the graph, ``operations`` the preparation of pictures.
    ``token``: the id that stands where a picture's vectors go; None where the runtime has negative
    ones there. ``settings``: more of ``genai_config.json``'s ``model``.
    """

    load: Callable[[Path], torch.nn.Module]
    feeds: Callable[[], Feeds]
    counted: Mapping[str, Mapping[int, str]]
    pipeline: str
    inputs: Mapping[str, str]
    processor: Json
    token: int | None
    settings: Mapping[str, Json]


def of(checkpoint: Path) -> Eyes:
    """The eyes of the checkpoint in that folder."""
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    return KINDS[config["architectures"][0]]


def _phi3_feeds() -> Feeds:
    """One of them twice as wide."""
    crop, draw = clip.CROP, torch.Generator().manual_seed(0)
    sizes = torch.tensor([[crop, 2 * crop], [crop, crop]])
    pixels = torch.randn(len(sizes), 3, 3, crop, crop, generator=draw)
    return {"pixel_values": pixels, "image_sizes": sizes}


def _phi4_feeds() -> Feeds:
    """One of them twice as wide, both with padding."""
    crop, draw = siglip.CROP, torch.Generator().manual_seed(0)
    sizes = torch.tensor([[crop, 2 * crop], [crop, crop]])
    masks = torch.ones(len(sizes), 3, siglip.PATCHES, siglip.PATCHES)
    masks[0, 1:, 20:] = 0
    masks[1, 1, :, 13:] = 0
    pixels = torch.randn(len(sizes), 3, 3, crop, crop, generator=draw)
    return {"pixel_values": pixels, "image_attention_mask": masks, "image_sizes": sizes}


def _operations(*told: tuple[str, str, Json, list[str]]) -> list[Json]:
    """onnxruntime-extensions' way of writing what is done to a picture."""
    found: list[Json] = []
    for name, kind, attributes, inputs in told:
        operation: dict[str, Json] = {"name": name, "type": kind}
        operation |= {"attrs": attributes} if attributes else {}
        found.append({"operation": operation | ({"inputs": inputs} if inputs else {})})
    return found


def _in_domain(operations: list[Json]) -> list[Json]:
    domain = {"domain": "com.microsoft.extensions"}
    return [{"operation": {**one["operation"], **domain}} for one in operations]


_BASE = {"dyhd_base_resolution": siglip.CROP}
KINDS: Mapping[str, Eyes] = {
    kinds.PHI3: Eyes(
        load=clip.load,
        feeds=_phi3_feeds,
        counted={"pixel_values": {0: "images", 1: "crops"}, "image_sizes": {0: "images"}},
        pipeline="phi3v",
        inputs={"pixel_values": "pixel_values", "image_sizes": "image_sizes"},
        # the last operation always cuts into 16 crops at most, whatever it is told
        processor={
            "processor": {
                "name": "image_processing",
                "transforms": _in_domain(
                    _operations(
                        ("decode_image", "DecodeImage", {"color_space": "BGR"}, []),
                        ("convert_to_rgb", "ConvertRGB", {}, []),
                        (
                            "phi3_image_transform",
                            "Phi3ImageTransform",
                            {"num_crops": 16, "num_img_tokens": 144},
                            [],
                        ),
                    )
                ),
            }
        },
        token=None,
        settings={},
    ),
    kinds.PHI4: Eyes(
        load=lambda checkpoint: Batch(siglip.load(checkpoint)).eval(),
        feeds=_phi4_feeds,
        counted={
            "pixel_values": {0: "images", 1: "crops"},
            "image_attention_mask": {0: "images", 1: "crops"},
            "image_sizes": {0: "images"},
        },
        pipeline="phi4mm",
        inputs={
            "pixel_values": "pixel_values",
            "attention_mask": "image_attention_mask",
            "image_sizes": "image_sizes",
        },
        processor={
            "processor": {
                "name": "image_processing",
                "transforms": _operations(
                    ("decode", "DecodeImage", {"color_space": "RGB"}, []),
                    (
                        "crops",
                        "Phi4VisionDynamicPreprocess",
                        {"dynamic_hd": kinds.KINDS[kinds.PHI4].crops, **_BASE},
                        [],
                    ),
                    ("rescale", "Rescale", {}, [":0"]),
                    (
                        "normalize",
                        "Normalize",
                        {"mean": [siglip.MEAN] * 3, "std": [siglip.DEVIATION] * 3},
                        [],
                    ),
                    (
                        "whole",
                        "Phi4VisionProcessor",
                        {**_BASE, "interpolation": "CUBIC"},
                        [":0", "crops:1"],
                    ),
                ),
                "output_aligner": "phi4-vision-aligner",
            }
        },
        token=kinds.PHI4_PICTURE,
        # without hearing: both names have defaults
        settings={"speech": {"filename": "", "config_filename": ""}},
    ),
}
