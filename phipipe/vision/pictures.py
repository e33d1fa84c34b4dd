"""Pictures that models which see are shown: drawn here, so that nobody else's are needed."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.steps import Inputs, Params
from phipipe.vision.kinds import PHI3, PHI4


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
    "On a ground that goes from dark green to pink there are a red disc on the left, a blue box on "
    "the right, and black stripes at the bottom. Which of these shapes is the largest, and what "
    "colour does it have?"
)
MARK = "<|image_1|>"  # where the picture stands in the text
OF_KIND: Mapping[str, tuple[Picture, ...]] = {PHI3: PICTURES, PHI4: LARGER}


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


def shown(params: Params) -> tuple[Picture, ...]:
    """The pictures that a step with these ``params`` is about: its kind's, or square ones where
    the backend sees no others as they are."""
    return SQUARES if params.get("square") else OF_KIND[params.get("kind", PHI3)]


def draw(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): the ``shown`` pictures as PNG files."""
    for picture in shown(params):
        (out / f"{picture.name}.png").write_bytes(picture.png())
