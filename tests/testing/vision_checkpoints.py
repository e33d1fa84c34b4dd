"""A small checkpoint with Phi-3.5-vision's architecture: Phi-3.5-mini's small one and small eyes,
random.

Runs in the torch toolchain: ``python vision_checkpoints.py FOLDER`` leaves it in FOLDER/source, in
the layout of the hub's original, and in FOLDER/clip.npz what transformers' own CLIP says of two
crops, with the crops.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from phipipe.assets import tokenizer
from phipipe.models import family
from testing import family_checkpoints as text

WIDTH, INNER, LAYERS, SIDE = 1024, 256, 3, 24  # openvino-genai has the original width alone
PREFIX = "model.vision_embed_tokens."
CLIP = f"{PREFIX}img_processor.vision_model."


def vision_shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the vision part's tensors, as in the original; ``hidden`` is the language
    model's width."""
    found: dict[str, tuple[int, ...]] = {
        f"{PREFIX}glb_GN": (1, 1, 4 * WIDTH),
        f"{PREFIX}sub_GN": (1, 1, 1, 4 * WIDTH),
        f"{PREFIX}img_projection.0.weight": (hidden, 4 * WIDTH),
        f"{PREFIX}img_projection.0.bias": (hidden,),
        f"{PREFIX}img_projection.2.weight": (hidden, hidden),
        f"{PREFIX}img_projection.2.bias": (hidden,),
        f"{CLIP}embeddings.class_embedding": (WIDTH,),
        f"{CLIP}embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        f"{CLIP}embeddings.position_embedding.weight": (SIDE * SIDE + 1, WIDTH),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        linears = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkv"}
        linears |= {
            "self_attn.out_proj": (WIDTH, WIDTH),
            "mlp.fc1": (INNER, WIDTH),
            "mlp.fc2": (WIDTH, INNER),
        }
        for name, shape in linears.items():
            found |= {
                f"{CLIP}{layer}.{name}.weight": shape,
                f"{CLIP}{layer}.{name}.bias": shape[:1],
            }
    found |= {f"{CLIP}{norm}.{kind}": (WIDTH,) for norm in norms for kind in ("weight", "bias")}
    return found


def make(folder: Path) -> None:
    """Write the checkpoint into the new ``folder``."""
    import torch
    from safetensors.torch import save_file

    (mini,) = (m for m in family.MEMBERS if m.name == "Phi-3.5-mini")
    (whole,) = (m for m in family.MEMBERS if m.name == "Phi-3.5-vision")
    text.make(mini, folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    own = ("architectures", "model_type", "img_processor", "embd_layer")
    config |= {key: whole.config[key] for key in own}
    config["auto_map"] = {
        "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM"
    }  # as the hub's; its code is not here
    tokenizer.write_json(folder / "config.json", config)
    torch.manual_seed(text.SEED)
    tensors = {}
    for name, shape in vision_shapes(config["hidden_size"]).items():
        values = torch.randn(shape)
        if "norm" in name.rsplit(".", 2)[-2]:
            values = (1 if name.endswith("weight") else 0) + 0.1 * values
        elif name.endswith(".weight") and "embedding" not in name:
            values = values * 1.4 / shape[1] ** 0.5
        elif "patch_embedding" in name:
            values = values / (3 * 14 * 14) ** 0.5
        tensors[name] = values.to(torch.bfloat16)
    parts = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").rename(folder / parts[0])
    save_file(tensors, folder / parts[1], metadata={"format": "pt"})
    places = dict.fromkeys(text.shapes(config | {"model_type": "phi3"}), parts[0]) | dict.fromkeys(
        tensors, parts[1]
    )
    tokenizer.write_json(
        folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places}
    )


def clip(folder: Path) -> dict[str, Any]:
    """Two random crops [2, 3, 336, 336] and the last but one hidden states of transformers' CLIP
    for them."""
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    config = CLIPVisionConfig(
        **sizes, num_attention_heads=WIDTH // 64, image_size=336, patch_size=14
    )
    model = CLIPVisionModel(config).eval()
    tensors = load_file(folder / "model-00002-of-00002.safetensors")
    wanted = dict(model.named_parameters())
    state = {n.removeprefix(CLIP): v.float() for n, v in tensors.items() if n.startswith(CLIP)}
    prefix = "vision_model." if any(n.startswith("vision_model.") for n in wanted) else ""
    model.load_state_dict({prefix + n: value for n, value in state.items()}, strict=False)
    assert set(wanted) == {prefix + n for n in state}
    crops = torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        seen = model(crops, output_hidden_states=True).hidden_states[-2]
    return {"crops": crops.numpy(), "patches": seen[:, 1:].numpy()}


if __name__ == "__main__":
    import numpy as np

    root = Path(sys.argv[1])
    make(root / "source")
    np.savez(root / "clip.npz", **clip(root / "source"))
