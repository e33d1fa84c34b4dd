"""Runs in the torch toolchain: ``python phi4mm_driver.py SOURCE CUT`` prints JSON.

``eyes``: for some grids and paddings, how far our vectors lie from those of transformers' own
implementation, as a share of the largest value. ``batch``: the same for several pictures at once,
against each alone. ``adapter``: the same for what the linears of ``CUT`` make of random vectors,
against base layers and adapters of ``SOURCE`` applied one after the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from testing import phi4mm_checkpoints as small

from phipipe.vision import pictures, siglip
from phipipe.vision.siglip_batch import Batch

# Crops high and wide, and patches of padding below and at the right.
LAYOUTS = ((1, 1, 0, 0), (1, 1, 0, 11), (2, 2, 14, 0), (1, 3, 0, 20), (2, 1, 31, 0))


def worst(found: Any, expected: Any) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def theirs(source: Path, hidden: int) -> Any:
    """transformers' ``Phi4MultimodalImageEmbedding`` with the weights of ``source``."""
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as modeling
    from transformers.models.phi4_multimodal.configuration_phi4_multimodal import (
        Phi4MultimodalConfig,
    )

    sizes = {
        "hidden_size": small.WIDTH,
        "intermediate_size": small.INNER,
        "num_hidden_layers": small.LAYERS,
    }
    config = Phi4MultimodalConfig(hidden_size=hidden, vision_config=sizes)
    config.vision_config._attn_implementation = "eager"
    model = modeling.Phi4MultimodalImageEmbedding(config).eval()
    names = {"glb_GN": "global_img_feature_extensor", "sub_GN": "sub_img_feature_extensor"}
    names |= {
        f"img_projection.{i}.{k}": f"img_projection_{w}.{k}"
        for i, w in ((0, "up"), (2, "down"))
        for k in KINDS
    }
    state = {}
    for name, values in load_file(source / "model.safetensors").items():
        if name.startswith(small.PREFIX):
            plain = name.removeprefix(small.PREFIX)
            state[names.get(plain, plain)] = values.float()
    model.load_state_dict(state)
    return model


KINDS = ("weight", "bias")


def seen(source: Path) -> dict[str, float]:
    tower = siglip.load(source)
    hidden = tower.img_projection[2].weight.shape[0]
    model, found = theirs(source, hidden), {}
    draw = torch.Generator().manual_seed(3)
    for high, wide, below, right in LAYOUTS:
        crops = torch.randn(1 + high * wide, 3, 448, 448, generator=draw)
        mask = torch.ones(32 * high, 32 * wide, dtype=torch.bool)
        mask[len(mask) - below :] = False
        mask[:, mask.shape[1] - right :] = False
        masks = mask.view(high, 32, wide, 32).transpose(1, 2).reshape(-1, 32, 32)
        masks = torch.cat([torch.ones_like(masks[:1]), masks])
        ours = tower(crops, masks, (high, wide))
        ids = torch.full((1, len(ours)), model.config.vision_config.image_token_id)
        empty = torch.zeros(1, len(ours), hidden)
        sizes = torch.tensor([[448 * high, 448 * wide]])
        expected = model(
            ids, empty, crops[None], image_sizes=sizes, image_attention_mask=masks[None].float()
        )
        found[f"{high} × {wide}, {below} {right}"] = worst(ours, expected[0])
    return found


def batched(source: Path) -> float:
    """How far several pictures at once are from each alone."""
    tower = siglip.load(source)
    sizes = ((700, 500), (430, 600), (300, 300), (1000, 449))
    prepared = [
        siglip.prepare(pictures.Picture(name="", width=width, height=height), 36)
        for width, height in sizes
    ]
    most = max(len(crops) for crops, _, _ in prepared)
    pixels = [
        torch.cat([crops, torch.zeros(most - len(crops), 3, 448, 448)]) for crops, _, _ in prepared
    ]
    masks = [
        torch.cat([mask.float(), torch.ones(most - len(mask), 32, 32)]) for _, mask, _ in prepared
    ]
    grids = torch.tensor([[448 * high, 448 * wide] for _, _, (high, wide) in prepared])
    found = Batch(tower).eval()(torch.stack(pixels), torch.stack(masks), grids)
    return worst(found, torch.cat([tower(*one) for one in prepared]))


def adapted(source: Path, cut: Path) -> float:
    whole, alone = load_file(source / "model.safetensors"), load_file(cut / "model.safetensors")
    gaps = []
    for name, weight in alone.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.base_layer.weight" not in whole:
            continue
        base = whole[f"{stem}.base_layer.weight"].float()
        down, up = (whole[f"{stem}.lora_{which}.vision.weight"].float() for which in "AB")
        vectors = torch.randn(base.shape[1], 7, generator=torch.Generator().manual_seed(4))
        expected = base @ vectors + small.ALPHA / small.RANK * (up @ (down @ vectors))
        gaps.append(worst(weight.float() @ vectors, expected))
        assert worst(base @ vectors, expected) > 0.1  # the adapter matters
    return max(gaps)


def main(source: Path, cut: Path) -> None:
    with torch.inference_mode():
        print(
            json.dumps(
                {"eyes": seen(source), "adapter": adapted(source, cut), "batch": batched(source)}
            )
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
