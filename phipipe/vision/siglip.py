"""The eyes of Phi-4-multimodal in PyTorch: pictures, cut into crops, to vectors between the text's.

Written from the architecture's description (the model's own code is never run): SigLIP's vision
transformer (Zhai et al. 2023, arXiv:2303.15343) in its NaViT form (Dehghani et al. 2023,
arXiv:2307.06304), whose last but one layer is read, on every crop of a picture and on the picture
as a whole; patches of padding are masked, 2 × 2 patches are averaged, a learned vector ends every
row, another stands between crops and whole ("sub_glb"); two linear layers lead into the language
model's space (Microsoft 2025, arXiv:2503.01743, section 2).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from phipipe.errors import StepFailed
from phipipe.models import mapped
from phipipe.vision import pictures

if TYPE_CHECKING:
    from phipipe.vision.pictures import Picture

PREFIX = "model.embed_tokens_extend.image_embed."
CROP, PATCH = 448, 14  # pixels
PATCHES = CROP // PATCH  # along a side of a crop
SIDE = PATCHES // 2  # vectors along a side of a crop, after 2 × 2 patches were averaged
HEADS = 16
EPSILON = 1e-6  # of its layer norms
MASKED = -1e9  # added to attention's scores; finite, so that a crop of padding alone gives numbers
MEAN = DEVIATION = 0.5  # of pixels between 0 and 1


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, EPSILON)
        self.self_attn = nn.ModuleDict(
            {f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")}
        )
        self.layer_norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        normed = self.layer_norm1(hidden)
        count, length, width = hidden.shape
        split = (count, length, HEADS, width // HEADS)
        query, key, value = (
            self.self_attn[f"{name}_proj"](normed).view(split).transpose(1, 2) for name in "qkv"
        )
        weights = (query * (width // HEADS) ** -0.5 @ key.transpose(2, 3) + mask).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(count, length, width)
        hidden = hidden + self.self_attn["out_proj"](mixed)
        raised = functional.gelu(self.mlp["fc1"](self.layer_norm2(hidden)), approximate="tanh")
        return hidden + self.mlp["fc2"](raised)


class Siglip(nn.Module):  # type: ignore[misc]
    """Crops to vectors, float32 [n, 256, width].

    ``pixel_values`` float32 [n, 3, 448, 448], ``patch_attention_mask`` bool [n, 32, 32]: which
    patches are picture, ``patch_position_ids`` int64 [n, 1024]: ``positions`` of that mask.
    """

    def __init__(self, width: int, inner: int, layers: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, width, PATCH, PATCH)
        self.position_embedding = nn.Embedding(PATCHES**2, width)
        self.layers = nn.ModuleList(_Layer(width, inner) for _ in range(layers))

    def forward(
        self, pixel_values: Tensor, patch_attention_mask: Tensor, patch_position_ids: Tensor
    ) -> Tensor:
        hidden = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = hidden + self.position_embedding(patch_position_ids)
        mask = (1 - patch_attention_mask.flatten(1)[:, None, None].to(hidden.dtype)) * MASKED
        for layer in self.layers:
            hidden = layer(hidden, mask)
        count, _, width = hidden.shape
        squares = hidden.view(count, SIDE, 2, SIDE, 2, width)
        return squares.mean((2, 4)).reshape(count, SIDE * SIDE, width)


class Tower(nn.Module):  # type: ignore[misc]
    """Crops of one picture, whole first, to [vectors, hidden]."""

    def __init__(self, width: int, inner: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.siglip = Siglip(width, inner, layers)
        self.row_end = nn.Parameter(torch.empty(width))
        self.between = nn.Parameter(torch.empty(width))
        self.img_projection = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )

    def forward(self, pixel_values: Tensor, masks: Tensor, grid: tuple[int, int]) -> Tensor:
        """``pixel_values`` [1 + h · w, 3, 448, 448], ``masks`` bool [1 + h · w, 32, 32], ``grid`` =
        (h, w)."""
        crops = self.siglip(pixel_values, masks, positions(masks))
        high, wide = grid
        parts = (
            crops[1:]
            .view(high, wide, SIDE, SIDE, -1)
            .transpose(1, 2)
            .reshape(high * SIDE, wide * SIDE, -1)
        )
        useful = (
            masks[1:, ::2, ::2]
            .reshape(high, wide, SIDE, SIDE)
            .transpose(1, 2)
            .reshape(high * SIDE, wide * SIDE)
        )
        parts = parts[: int(useful[:, 0].sum()), : int(useful[0].sum())]
        whole = crops[0].view(SIDE, SIDE, -1)
        rows = torch.cat([self._rows(parts), self.between[None], self._rows(whole)])
        projected: Tensor = self.img_projection(rows)
        return projected

    def _rows(self, grid: Tensor) -> Tensor:
        """[rows, columns, width] with the vector that ends a row, one after the other."""
        ends = self.row_end.expand(grid.shape[0], 1, -1)
        return torch.cat([grid, ends], 1).flatten(0, 1)


def positions(masks: Tensor) -> Tensor:
    """Which of the 32 × 32 learned positions a patch takes: a crop's share of picture is stretched
    over all of them.

    ``masks`` bool [n, 32, 32]; int64 [n, 1024], 0 for patches of padding.
    """
    steps = torch.arange(PATCHES)[None]
    high, wide = (masks.any(axis).sum(1, keepdim=True).clamp(min=1) for axis in (2, 1))
    rows, columns = (
        torch.clamp(steps * PATCHES // count, max=PATCHES - 1) for count in (high, wide)
    )
    return ((rows[:, :, None] * PATCHES + columns[:, None]) * masks).flatten(1)


def load(source: Path) -> Tower:
    """The tower of the checkpoint ``source``, in float32.

    Raises:
        StepFailed: its tensors are not such a tower's.
    """
    checkpoint = mapped.Checkpoint(source)
    names = {
        name.removeprefix(PREFIX): name for name in checkpoint.places if name.startswith(PREFIX)
    }
    depth = len({m[1] for n in names if (m := re.search(r"encoder\.layers\.(\d+)\.", n))})
    try:
        inner, width = checkpoint.places[
            names["img_processor.encoder.layers.0.mlp.fc1.weight"]
        ].shape
        hidden = checkpoint.places[names["img_projection.2.weight"]].shape[0]
        tower = Tower(width, inner, depth - 1, hidden)  # the last layer is never read
        own = {
            name: checkpoint.tensor(names[_theirs(name)]) for name, _ in tower.named_parameters()
        }
        tower.load_state_dict(
            {n: value.float().reshape(tower.get_parameter(n).shape) for n, value in own.items()}
        )
    except (KeyError, RuntimeError) as error:
        raise StepFailed(
            f"the checkpoint's vision part is not Phi-4-multimodal's: {error}"
        ) from None
    tower.eval()
    return tower


def _theirs(name: str) -> str:
    """The checkpoint's name for the parameter ``name`` of ``Tower``."""
    if name in ("row_end", "between"):
        return {"row_end": "sub_GN", "between": "glb_GN"}[name]
    if not name.startswith("siglip."):
        return name
    name = name.removeprefix("siglip.")
    return f"img_processor.{'encoder' if name.startswith('layers.') else 'embeddings'}.{name}"


def see(tower: Tower, picture: Picture, crops: int) -> Tensor:
    """What the language model is given for ``picture``, float32 [vectors, hidden]."""
    seen: Tensor = tower(*prepare(picture, crops))
    return seen


def prepare(picture: Picture, crops: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """A picture as the tower takes it: float32 [1 + h · w, 3, 448, 448], its masks, and (h, w).

    As Phi-4-multimodal was trained: enlarged (bilinear, with antialiasing) until it fills a grid of
    crops in one direction, padded with white at the right or below; before them the whole, squeezed
    into one (bicubic).
    """
    raw = torch.frombuffer(bytearray(picture.pixels()), dtype=torch.uint8)
    image = raw.view(picture.height, picture.width, 3).permute(2, 0, 1).float()[None]
    high, wide = pictures.grid(picture.width, picture.height, crops, CROP)
    size, rest = fitted(picture.width, picture.height, (high, wide))
    image = functional.interpolate(
        image, size, mode="bilinear", antialias=True, align_corners=False
    )
    image = functional.pad(image.round().clamp(0, 255), (0, rest[1], 0, rest[0]), value=255.0)
    image = (image / 255 - MEAN) / DEVIATION
    whole = functional.interpolate(image, (CROP, CROP), mode="bicubic", align_corners=False)
    mask = torch.ones(high * PATCHES, wide * PATCHES, dtype=torch.bool)
    mask[mask.shape[0] - rest[0] // PATCH :] = False
    mask[:, mask.shape[1] - rest[1] // PATCH :] = False
    cut = image.view(3, high, CROP, wide, CROP).permute(1, 3, 0, 2, 4).reshape(-1, 3, CROP, CROP)
    masks = mask.view(high, PATCHES, wide, PATCHES).transpose(1, 2).reshape(-1, PATCHES, PATCHES)
    return torch.cat([whole, cut]), torch.cat([torch.ones_like(masks[:1]), masks]), (high, wide)


def fitted(
    width: int, height: int, crops: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) that a picture is resized to for ``crops`` (high, wide), and what is left
    below and beside it."""
    down, across = (count * CROP for count in crops)
    scale = min(across / width, down / height)
    size = (
        (int(height * scale), across)
        if across / width < down / height
        else (down, int(width * scale))
    )
    return size, (down - size[0], across - size[1])
