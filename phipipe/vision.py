"""Models that see: what of them is a plain language model, the pictures they are shown, and what must come of it.

The language model goes through a backend's steps like any other, so that everything which holds for text (parity,
fidelity, gates) holds here; the backend's own last step puts the eyes beside it.
"""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe import layerwise, mapped, models
from phipipe.backends.base import Inputs, Params, Step
from phipipe.models import Checkpoint

if TYPE_CHECKING:
    from phipipe.recipe import Recipe

# Architecture → backend → the step (``module:function``) that puts the eyes beside the backend's own artifact.
BACKENDS: Mapping[str, Mapping[str, str]] = {
    "Phi3VForCausalLM": {"onnxruntime": "phipipe.onnx_vision:vision", "openvino": "phipipe.openvino_vision:eyes"},
}
APIS = frozenset({"cpu"})  # units that they are built for
CROPS: Mapping[str, int] = {"onnxruntime": 16, "openvino": 16}  # the most that a runtime cuts a picture into
# Runtimes that see square pictures alone as they are: openvino-genai 2026.4 takes the crops of others for as many high
# as they are wide (VisionEncoderPhi3V::encode gives width for height), so they are padded to squares before.
SQUARE = frozenset({"openvino"})
EYES_BITS: Mapping[str, int | None] = {
    "int4": 8,
    "int8": 8,
}  # of their matrices: few weights, and all else builds on them
# Architecture → the one that its language model has by itself.
LANGUAGE: Mapping[str, tuple[str, str]] = {"Phi3VForCausalLM": ("Phi3ForCausalLM", "phi3")}
EYES = "model.vision_embed_tokens."  # what the names of its other tensors start with
OTHER_KEYS = ("img_processor", "embd_layer", "auto_map")  # of its config
WEIGHTS = "model.safetensors"


def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of the language model in a model of ``config`` that sees."""
    architecture, kind = LANGUAGE[str(config["architectures"][0])]
    kept = {key: value for key, value in config.items() if key not in OTHER_KEYS}
    return kept | {"architectures": [architecture], "model_type": kind}


def language(checkpoint: Checkpoint) -> Checkpoint:
    """What ``cut`` makes of ``checkpoint``; its bytes are an estimate."""
    alone = models.of_config(language_config(checkpoint.config), checkpoint.tokenizer)
    weight_bytes = round(alone.parameters * checkpoint.weight_bytes / checkpoint.parameters)
    return replace(alone, folder=checkpoint.folder, weight_bytes=weight_bytes)


def sees(checkpoint: Checkpoint) -> bool:
    """Whether phipipe knows how to take ``checkpoint`` apart."""
    return checkpoint.architecture in LANGUAGE


def eyes_step(original: Checkpoint, artifact: Step, recipe: Recipe) -> Step:
    """The step that makes an artifact which sees of ``artifact``, the language model's."""
    parameters = original.parameters - language(original).parameters
    bits = EYES_BITS.get(recipe.precision)
    return Step(
        name="eyes",
        runs=BACKENDS[original.architecture][recipe.backend],
        version=1,
        needs={"model": artifact.name, "original": "original"},
        params={"bits": bits},
        toolchain=artifact.toolchain,
        output_bytes=artifact.output_bytes + parameters * (bits or 32) // 8,
        memory_bytes=12 * parameters + 2**30,
    )


def scoring_steps(original: Checkpoint, artifact: Step, recipe: Recipe) -> list[Step]:
    """The steps that compare what ``artifact`` makes of pictures with what the original does."""
    crops = CROPS[recipe.backend]
    parameters = original.parameters - language(original).parameters
    room = 4 * (parameters + 2**27 * crops // 16)  # and what passes through the eyes
    square = {"square": True} if recipe.backend in SQUARE else {}
    return [
        Step(name="pictures", runs="phipipe.vision:draw", version=1, params=square),
        Step(
            name="vision-baseline",
            runs="phipipe.vision_scoring:baseline",
            version=1,
            needs={"original": "original", "source": "source"},
            params={"crops": crops, **square},
            toolchain="torch",
            memory_bytes=room + layerwise.memory_bytes(language(original), len(PICTURES) * 3000, 3000),
        ),
        Step(
            name="vision-evaluate",
            runs="phipipe.vision_scoring:compare",
            version=1,
            needs={"artifact": artifact.name, "baseline": "vision-baseline", "pictures": "pictures"},
            params={"backend": recipe.backend},
            toolchain=artifact.toolchain,
            memory_bytes=room + artifact.output_bytes + 2**30,
        ),
    ]


def cut_step(checkpoint: Checkpoint) -> Step:
    """The step that leaves the language model of ``checkpoint``, under the name that all others know it by."""
    return Step(
        name="source",
        runs="phipipe.vision:cut",
        version=1,
        needs={"original": "original"},
        output_bytes=language(checkpoint).weight_bytes,
    )


def cut(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): the language model of ``inputs["original"]``, bytes as they are."""
    original = inputs["original"]
    places = mapped.places(original)
    mapped.write(out / WEIGHTS, original, {name: p for name, p in places.items() if not name.startswith(EYES)})
    for name in models.files(original):
        if not name.endswith((".safetensors", ".index.json")) and name != "config.json":
            shutil.copyfile(original / name, out / name)
    config = language_config(json.loads((original / "config.json").read_text("utf-8")))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A generated picture: a gradient with stripes, a disc and a box on it. Sizes in pixels."""

    name: str
    width: int
    height: int

    def pixels(self) -> bytes:
        """Red, green and blue of each pixel, row by row from the top, 8 bits each."""
        across, down = self.width, self.height
        radius, rows = min(across, down) // 4, bytearray()
        for y in range(down):
            for x in range(across):
                if (x - across // 3) ** 2 + (y - down // 2) ** 2 < radius**2:
                    rows += b"\xd0\x20\x20"
                elif 0.6 * across < x < 0.85 * across and 0.2 * down < y < 0.6 * down:
                    rows += b"\x20\x40\xd0"
                elif y > 0.8 * down and x // 12 % 2:
                    rows += b"\x10\x10\x10"
                else:
                    rows += bytes((255 * x // across, 255 * y // down, 128))
        return bytes(rows)

    def png(self) -> bytes:
        """The picture as a PNG file."""
        pixels, stride = self.pixels(), 3 * self.width
        rows = b"".join(b"\0" + pixels[at : at + stride] for at in range(0, len(pixels), stride))
        head = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# One wider than high and one higher than wide: every step of their preparation (turning, resizing, padding) is taken.
PICTURES = (Picture(name="wide", width=420, height=260), Picture(name="tall", width=200, height=320))
SQUARES = (Picture(name="large", width=420, height=420), Picture(name="small", width=200, height=200))
# Scored is what a model makes of the words after a picture; they name what is on it.
QUESTION = (
    "On a ground that goes from dark green to pink there are a red disc on the left, a blue box on the right, and "
    "black stripes at the bottom. Which of these shapes is the largest, and what colour does it have?"
)
MARK = "<|image_1|>"  # where the picture stands in the text


def pictures(params: Params) -> tuple[Picture, ...]:
    """The pictures that a step with these ``params`` is about."""
    return SQUARES if params.get("square") else PICTURES


def draw(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): ``PICTURES``, or with ``params["square"]`` ``SQUARES``, as PNG files."""
    for picture in pictures(params):
        (out / f"{picture.name}.png").write_bytes(picture.png())
