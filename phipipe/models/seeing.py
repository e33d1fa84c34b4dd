"""Models that see: what of them is a plain language model, the pictures they are shown, and what
must come of it.

The language model goes through a backend's steps like any other, so that everything which holds for
text (parity, fidelity, gates) holds here; the backend's own last step puts the eyes beside it.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe import backends
from phipipe.models import checkpoints, layerwise, mapped
from phipipe.models.checkpoints import Checkpoint
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params, Step

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Recipe

APIS = frozenset({"cpu"})  # units that eyes are built for
EYES_BITS: Mapping[str, int | None] = {
    "int4": 8,
    "int8": 8,
}  # of their matrices: few weights, and all else builds on them
WEIGHTS = "model.safetensors"
PHI3, PHI4 = "Phi3VForCausalLM", "Phi4MMForCausalLM"


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


# One wider than high and one higher than wide: every step of their preparation (turning, resizing,
# padding) is taken.
PICTURES = (
    Picture(name="wide", width=420, height=260),
    Picture(name="tall", width=200, height=320),
)
SQUARES = (
    Picture(name="large", width=420, height=420),
    Picture(name="small", width=200, height=200),
)
# Of 2 × 2 and 1 × 2 crops of 448 pixels, neither of which they fill.
LARGER = (Picture(name="wide", width=700, height=500), Picture(name="tall", width=430, height=600))
# Scored is what a model makes of the words after a picture; they name what is on it.
QUESTION = (
    "On a ground that goes from dark green to pink there are a red disc on the left, a blue box "
    "on the right, and "
    "black stripes at the bottom. Which of these shapes is the largest, and what colour does it "
    "have?"
)
MARK = "<|image_1|>"  # where the picture stands in the text


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family of models that see.

    The faces of backends say which of them build the eyes. ``cut``: the step that leaves the
    language model, which has ``architecture`` and ``model_type`` by itself, from tensors whose
    names do not start with any of ``others``; ``keys`` of the config speak of these. ``tower``: the module with the eyes in PyTorch (``load``,
    ``see``). ``share``: how much of the parameters that are not the language model's are the eyes'.
    ``crops``: the most that a picture is cut into. ``pictures``: those that builds are scored on,
    but where a backend sees square ones alone as they are. ``after_mark``: what stands between a
    picture and its question.
    """

    architecture: str = "Phi3ForCausalLM"
    model_type: str = "phi3"
    cut: str
    cut_toolchain: str | None = None
    others: tuple[str, ...]
    keys: tuple[str, ...]
    tower: str
    share: float = 1.0
    crops: int
    pictures: tuple[Picture, ...]
    after_mark: str


KINDS: Mapping[str, Kind] = {
    PHI3: Kind(
        cut="vision/cut_language",
        others=("model.vision_embed_tokens.",),
        keys=("img_processor", "embd_layer", "auto_map"),
        tower="phipipe.vision.clip",
        crops=16,
        pictures=PICTURES,
        after_mark="\n",
    ),
    PHI4: Kind(
        cut="vision/merge_lora",
        cut_toolchain="torch",
        others=("model.embed_tokens_extend.",),
        keys=(
            "img_processor",
            "audio_processor",
            "embd_layer",
            "vision_lora",
            "speech_lora",
            "auto_map",
        ),
        tower="phipipe.vision.siglip",
        share=0.27,  # 0.46 G of 1.73 G in the original: the rest hears, or is low-rank
        crops=36,
        pictures=LARGER,
        after_mark="",
    ),
}


def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of the language model in a model of ``config`` that sees."""
    kind = KINDS[str(config["architectures"][0])]
    kept = {key: value for key, value in config.items() if key not in kind.keys}
    return kept | {"architectures": [kind.architecture], "model_type": kind.model_type}


def language(checkpoint: Checkpoint) -> Checkpoint:
    """What the step ``source`` makes of ``checkpoint``; its bytes are an estimate."""
    alone = checkpoints.of_config(language_config(checkpoint.config), checkpoint.tokenizer)
    weight_bytes = round(alone.parameters * checkpoint.weight_bytes / checkpoint.parameters)
    return replace(alone, folder=checkpoint.folder, weight_bytes=weight_bytes)


def sees(checkpoint: Checkpoint) -> bool:
    """Whether phipipe knows how to take ``checkpoint`` apart."""
    return checkpoint.architecture in KINDS


def _eyes_parameters(original: Checkpoint) -> int:
    return round(
        KINDS[original.architecture].share * (original.parameters - language(original).parameters)
    )


def eyes_step(original: Checkpoint, artifact: Step, recipe: Recipe) -> Step:
    """The step that makes an artifact which sees of ``artifact``, the language model's."""
    parameters = _eyes_parameters(original)
    bits = EYES_BITS.get(recipe.precision)
    return Step(
        name="eyes",
        runs=backends.load(recipe.backend).vision[original.architecture],
        version=1,
        needs={"model": artifact.name, "original": "original"},
        params={"bits": bits},
        toolchain=artifact.toolchain,
        output_bytes=artifact.output_bytes + parameters * (bits or 32) // 8,
        memory_bytes=12 * parameters + 2**30,
    )


def scoring_steps(original: Checkpoint, artifact: Step, recipe: Recipe) -> list[Step]:
    """The steps that compare what ``artifact`` makes of pictures with what the original does."""
    kind, face = KINDS[original.architecture], backends.load(recipe.backend)
    crops, parameters = kind.crops, _eyes_parameters(original)
    room = 4 * (parameters + 2**27 * crops // 16)  # and what passes through the eyes
    shown: dict[str, Any] = {"square": True} if original.architecture in face.square else {}
    shown |= {} if original.architecture == PHI3 else {"kind": original.architecture}
    return [
        Step(name="pictures", runs="vision/draw_pictures", version=1, params=shown),
        Step(
            name="vision-baseline",
            runs="evaluate/baseline_pictures",
            version=1,
            needs={"original": "original", "source": "source"},
            params={"crops": crops, **shown},
            toolchain="torch",
            memory_bytes=room
            + layerwise.memory_bytes(language(original), len(kind.pictures) * 3000, 3000),
        ),
        Step(
            name="vision-evaluate",
            runs="evaluate/compare_pictures",
            version=1,
            needs={
                "artifact": artifact.name,
                "baseline": "vision-baseline",
                "pictures": "pictures",
            },
            params={"backend": recipe.backend},
            toolchain=artifact.toolchain,
            memory_bytes=room + artifact.output_bytes + 2**30,
        ),
    ]


def cut_step(checkpoint: Checkpoint) -> Step:
    """The step that leaves the language model of ``checkpoint``, under the name that all others
    know it by."""
    kind, made = KINDS[checkpoint.architecture], language(checkpoint)
    return Step(
        name="source",
        runs=kind.cut,
        version=1,
        needs={"original": "original"},
        toolchain=kind.cut_toolchain,
        output_bytes=made.weight_bytes,
        memory_bytes=2**30 if kind.cut_toolchain else 0,
    )


def cut(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): the language model of ``inputs["original"]``, bytes as they are."""
    original = inputs["original"]
    places = mapped.places(original)
    others = cut_files(original, out).others
    mapped.write(
        out / WEIGHTS,
        original,
        {name: p for name, p in places.items() if not name.startswith(others)},
    )


def cut_files(original: Path, out: Path) -> Kind:
    """What belongs to the language model of the checkpoint ``original``, but for weights; returns
    its kind."""
    copy_beside(original, out, checkpoints.loose_files(original))
    config = json.loads((original / "config.json").read_text("utf-8"))
    (out / "config.json").write_text(json.dumps(language_config(config), indent=2) + "\n", "utf-8")
    return KINDS[config["architectures"][0]]


def grid(width: int, height: int, most: int, side: int) -> tuple[int, int]:
    """How many crops of ``side`` pixels, high and wide, Phi-4-multimodal cuts a picture of so many
    pixels into.

    As many as it covers; if that were more than ``most``, the grid that is nearest to its shape.
    """
    high, wide = math.ceil(height / side), math.ceil(width / side)
    if high * wide <= most:
        return high, wide
    shapes = [(h, w) for w in range(1, most + 1) for h in range(1, most + 1) if h * w <= most]
    best = (1, 1)
    for shape in sorted(shapes, key=math.prod):
        gap, least = (abs(width / height - w / h) for h, w in (shape, best))
        if gap < least or (gap == least and width * height > 0.5 * side**2 * math.prod(shape)):
            best = shape
    return best


def pictures(params: Params) -> tuple[Picture, ...]:
    """The pictures that a step with these ``params`` is about."""
    return SQUARES if params.get("square") else KINDS[params.get("kind", PHI3)].pictures


def draw(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): ``pictures`` as PNG files."""
    for picture in pictures(params):
        (out / f"{picture.name}.png").write_bytes(picture.png())
