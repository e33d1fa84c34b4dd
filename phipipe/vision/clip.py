"""The eyes of Phi-3-vision and Phi-3.5-vision in PyTorch: pictures, cut into crops, to vectors
between the text's.

Written from the architecture's description (the models' own code is never run): CLIP's vision
transformer (Radford et al. 2021, arXiv:2103.00020), whose last but one layer is read, on every crop
of a picture and on the picture as a whole; 2 × 2 patches are joined, a learned vector ends every
row, another stands between crops and whole ("sub_glb"); two linear layers lead into the language
model's space (Abdin et al. 2024, arXiv:2404.14219, section 6). There are no loops over pictures and
no branches on their sizes, so that one traced graph serves all of them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from phipipe.errors import StepFailed
from phipipe.models import mapped

if TYPE_CHECKING:
    from phipipe.vision.pictures import Picture

PREFIX = "model.vision_embed_tokens."
CROP, PATCH = 336, 14  # pixels
SIDE = CROP // PATCH // 2  # vectors along a side of a crop, after 2 × 2 patches were joined
HEAD = 64  # width of CLIP's attention heads
EPSILON = 1e-5  # of CLIP's layer norms
# CLIP's, of red, green and blue between 0 and 1.
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, EPSILON)
        self.self_attn = nn.ModuleDict(
            {f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")}
        )
        self.layer_norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.layer_norm1(hidden)
        count, length, width = hidden.shape
        split = (count, length, width // HEAD, HEAD)
        query, key, value = (
            self.self_attn[f"{name}_proj"](normed).view(split).transpose(1, 2) for name in "qkv"
        )
        weights = (query * HEAD**-0.5 @ key.transpose(2, 3)).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(count, length, width)
        hidden = hidden + self.self_attn["out_proj"](mixed)
        raised = self.mlp["fc1"](self.layer_norm2(hidden))
        # CLIP's "quick GELU"
        return hidden + self.mlp["fc2"](raised * torch.sigmoid(1.702 * raised))


class Clip(nn.Module):  # type: ignore[misc]
    """Crops [n, 3, 336, 336] to what the last but one layer says of their patches [n, 576,
    width]."""

    def __init__(self, width: int, inner: int, layers: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.position_embedding = nn.Embedding((CROP // PATCH) ** 2 + 1, width)
        self.pre_layrnorm = nn.LayerNorm(width, EPSILON)  # sic
        self.layers = nn.ModuleList(_Layer(width, inner) for _ in range(layers))

    def forward(self, crops: Tensor) -> Tensor:
        patches = self.patch_embedding(crops).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        hidden = torch.cat([first, patches], 1) + self.position_embedding.weight
        hidden = self.pre_layrnorm(hidden)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden[:, 1:]


class Tower(nn.Module):  # type: ignore[misc]
    """``pixel_values`` float32 [n, 1 + crops, 3, 336, 336] and ``image_sizes`` int64 [n, 2] to
    [vectors, hidden].

    Of every picture the first crop is the whole, scaled down; the others follow row by row, padded
    with any to a common number. ``image_sizes`` has height and width in pixels, multiples of 336. A
    picture of h × w crops gives 12 h (12 w + 1) + 1 + 12 · 13 vectors.
    """

    def __init__(self, width: int, inner: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.clip = Clip(width, inner, layers)
        self.row_end = nn.Parameter(torch.empty(4 * width))
        self.between = nn.Parameter(torch.empty(4 * width))
        self.img_projection = nn.Sequential(
            nn.Linear(4 * width, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )

    def features(self, crops: Tensor) -> Tensor:
        """Crops [n, 3, 336, 336] to joined patches [n, 144, 4 · width]."""
        patches = self.clip(crops)
        count, _, width = patches.shape
        joined = patches.view(count, SIDE, 2, SIDE, 2, width).permute(0, 1, 3, 2, 4, 5)
        return joined.reshape(count, SIDE * SIDE, 4 * width)

    def forward(self, pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
        count, crops = pixel_values.shape[:2]
        features = self.features(pixel_values.flatten(0, 1)).flatten(0, 1)
        rows = torch.cat([features, self.row_end[None], self.between[None]])
        end, between = features.shape[0], features.shape[0] + 1
        # The first of each picture's vectors.
        first = torch.arange(count)[:, None, None] * (crops * SIDE * SIDE)
        high, wide = ((image_sizes[:, i] // CROP * SIDE)[:, None, None] for i in (0, 1))
        row = torch.arange((crops - 1) * SIDE)[None, :, None]
        column = torch.arange((crops - 1) * SIDE + 1)[None, None, :]
        places = first + _inside(row, column, wide)
        parts = torch.where(column == wide, end, places).flatten(1)
        used = ((row < high) & (column <= wide)).flatten(1)
        row, column = torch.arange(SIDE)[None, :, None], torch.arange(SIDE + 1)[None, None, :]
        whole = torch.where(column == SIDE, end, first + row * SIDE + column).flatten(1)
        middle = torch.zeros_like(whole[:, :1]) + between
        order = torch.cat([parts, middle, whole], 1)
        kept = torch.cat(
            [
                used,
                torch.ones_like(middle, dtype=torch.bool),
                torch.ones_like(whole, dtype=torch.bool),
            ],
            1,
        )
        projected: Tensor = self.img_projection(rows[order[kept]][None])[0]
        return projected


def _inside(row: Tensor, column: Tensor, wide: Tensor) -> Tensor:
    """Index among a picture's vectors of the one at ``row``, ``column`` of all crops, ``wide``
    vectors a row."""
    crop = 1 + row // SIDE * (wide // SIDE) + column // SIDE
    return crop * (SIDE * SIDE) + row % SIDE * SIDE + column % SIDE


def load(source: Path) -> Tower:
    """The tower of the checkpoint ``source``, in float32.

    Raises:
        StepFailed: its tensors are not such a tower's.
    """
    checkpoint = mapped.Checkpoint(source)
    clip = "img_processor.vision_model."
    names = {
        name.removeprefix(PREFIX): name for name in checkpoint.places if name.startswith(PREFIX)
    }
    depth = len({m[1] for n in names if (m := re.search(r"encoder\.layers\.(\d+)\.", n))})
    try:
        inner, width = checkpoint.places[names[f"{clip}encoder.layers.0.mlp.fc1.weight"]].shape
        hidden = checkpoint.places[names["img_projection.2.weight"]].shape[0]
        tower = Tower(width, inner, depth - 1, hidden)  # the last layer is never read
        own = {
            name: checkpoint.tensor(names[_theirs(name, clip)])
            for name, _ in tower.named_parameters()
        }
        tower.load_state_dict(
            {n: value.float().reshape(tower.get_parameter(n).shape) for n, value in own.items()}
        )
    except (KeyError, RuntimeError) as error:
        raise StepFailed(f"the checkpoint's vision part is not Phi-3-vision's: {error}") from None
    tower.eval()
    return tower


def _theirs(name: str, clip: str) -> str:
    """The checkpoint's name for the parameter ``name`` of ``Tower``."""
    if name in ("row_end", "between"):
        return {"row_end": "sub_GN", "between": "glb_GN"}[name]
    if not name.startswith("clip."):
        return name
    name = name.removeprefix("clip.")
    if name.startswith("layers."):
        return f"{clip}encoder.{name}"
    return f"{clip}{name}" if name.startswith("pre_") else f"{clip}embeddings.{name}"


def see(tower: Tower, picture: Picture, crops: int) -> Tensor:
    """What the language model is given for ``picture``, float32 [vectors, hidden]."""
    pixels, size = prepare(picture, crops)
    seen: Tensor = tower(pixels[None], torch.tensor([size]))
    return seen


def prepare(picture: Picture, crops: int) -> tuple[Tensor, tuple[int, int]]:
    """A picture as the tower takes it: float32 [1 + n, 3, 336, 336], and (height, width) of its
    crops in pixels.

    As Phi-3-vision was trained: wide side down, as large as at most ``crops`` crops allow, resized
    (bilinear, with antialiasing), padded evenly with white to whole crops; before them the whole,
    squeezed into one (bicubic).
    """
    raw = torch.frombuffer(bytearray(picture.pixels()), dtype=torch.uint8)
    image = raw.view(picture.height, picture.width, 3).permute(2, 0, 1).float()[None]
    turned = picture.width < picture.height
    image = image.transpose(2, 3) if turned else image
    ratio = image.shape[3] / image.shape[2]
    scale = 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= crops:
        scale += 1
    wide = scale * CROP
    high = int(wide / ratio)
    image = functional.interpolate(
        image, (high, wide), mode="bilinear", antialias=True, align_corners=False
    )
    image = image.round().clamp(0, 255)
    rest = -high % CROP
    image = functional.pad(image, (0, 0, rest // 2, rest - rest // 2), value=255.0)
    image = (image.transpose(2, 3) if turned else image) / 255
    image = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    whole = functional.interpolate(image, (CROP, CROP), mode="bicubic", align_corners=False)
    size = (image.shape[2], image.shape[3])
    grid = image.view(3, size[0] // CROP, CROP, size[1] // CROP, CROP).permute(1, 3, 0, 2, 4)
    return torch.cat([whole, grid.reshape(-1, 3, CROP, CROP)]), size
