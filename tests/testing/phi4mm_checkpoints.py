"""A small Phi-4-multimodal: small language model and eyes, adapters, a scrap of what hears; the
hub's layout.

Runs in the torch toolchain: ``python phi4mm_checkpoints.py ROOT`` leaves ROOT/source, with ``wide``
behind it as many tokens as the original: onnxruntime-genai looks for pictures at its id.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from phipipe.assets import tokenizer
from phipipe.models import family
from phipipe.vision import kinds
from testing import family_checkpoints as text

WIDTH, INNER, LAYERS, SIDE, RANK, ALPHA = 128, 160, 3, 32, 8, 24
PREFIX = "model.embed_tokens_extend.image_embed."
ADAPTED = re.compile(r"\.(qkv_proj|o_proj|gate_up_proj|down_proj)\.weight$")


def vision_shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the vision part's tensors, as in the original; ``hidden`` is the language
    model's width."""
    eyes = f"{PREFIX}img_processor."
    found: dict[str, tuple[int, ...]] = {
        f"{PREFIX}glb_GN": (1, 1, WIDTH),
        f"{PREFIX}sub_GN": (1, 1, 1, WIDTH),
        f"{PREFIX}img_projection.0.weight": (hidden, WIDTH),
        f"{PREFIX}img_projection.0.bias": (hidden,),
        f"{PREFIX}img_projection.2.weight": (hidden, hidden),
        f"{PREFIX}img_projection.2.bias": (hidden,),
        f"{eyes}embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        f"{eyes}embeddings.patch_embedding.bias": (WIDTH,),
        f"{eyes}embeddings.position_embedding.weight": (SIDE * SIDE, WIDTH),
        f"{eyes}head.probe": (1, 1, WIDTH),
        f"{eyes}head.attention.in_proj_weight": (3 * WIDTH, WIDTH),
        f"{eyes}head.attention.in_proj_bias": (3 * WIDTH,),
    }
    norms, linears = (
        ["post_layernorm", "head.layernorm"],
        {"head.attention.out_proj": (WIDTH, WIDTH)},
    )
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        linears |= {
            f"{layer}.self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")
        }
    for place in ("head", *(f"encoder.layers.{i}" for i in range(LAYERS))):
        linears |= {f"{place}.mlp.fc1": (INNER, WIDTH), f"{place}.mlp.fc2": (WIDTH, INNER)}
    for name, shape in linears.items():
        found |= {f"{eyes}{name}.weight": shape, f"{eyes}{name}.bias": shape[:1]}
    return found | {
        f"{eyes}{norm}.{kind}": (WIDTH,) for norm in norms for kind in ("weight", "bias")
    }


def make(folder: Path, wide: bool = False) -> None:
    """Write the checkpoint into the new ``folder``."""
    import torch
    from safetensors.torch import load_file, save_file

    (mini,) = (m for m in family.MEMBERS if m.name == "Phi-4-mini")
    (whole,) = (m for m in family.MEMBERS if m.name == "Phi-4-multimodal")
    text.make(mini, folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {key: whole.config[key] for key in ("architectures", "model_type", "embd_layer")}
    config["vision_lora"] = {"r": RANK, "lora_alpha": ALPHA, "dp": 0.0}
    config["speech_lora"] = {"r": 2, "lora_alpha": 4, "dp": 0.0}
    config["auto_map"] = {
        "AutoModelForCausalLM": "modeling_phi4mm.Phi4MMForCausalLM"
    }  # as the hub's; without its code
    torch.manual_seed(text.SEED)
    tensors: dict[str, Any] = {}
    stored = load_file(folder / "model.safetensors")
    if wide:
        config["vocab_size"] = whole.config["vocab_size"]
        _widen_tokenizer(folder)
        rows, table = config["vocab_size"], stored["model.embed_tokens.weight"]
        more = torch.randn(rows - table.shape[0], table.shape[1]) / table.shape[1] ** 0.5
        stored["model.embed_tokens.weight"] = torch.cat([table, more.to(table.dtype)])
    tokenizer.write_json(folder / "config.json", config)
    for name, values in stored.items():
        if not ADAPTED.search(name):
            tensors[name] = values
            continue
        stem, (rows, columns) = name.removesuffix(".weight"), values.shape
        tensors[f"{stem}.base_layer.weight"] = values
        for kind, rank in (("vision", RANK), ("speech", 2)):
            tensors[f"{stem}.lora_A.{kind}.weight"] = (
                0.5 * torch.randn(rank, columns) / columns**0.5
            )
            tensors[f"{stem}.lora_B.{kind}.weight"] = 0.2 * torch.randn(rows, rank) / rank**0.5
    for name, shape in vision_shapes(config["hidden_size"]).items():
        values = torch.randn(shape)
        if "norm" in name.rsplit(".", 2)[-2]:
            values = (1 if name.endswith("weight") else 0) + 0.1 * values
        elif name.endswith("patch_embedding.weight"):
            values = values / (3 * 14 * 14) ** 0.5
        elif name.endswith("weight") and "embedding" not in name:
            values = values * 1.4 / shape[1] ** 0.5
        tensors[name] = values
    tensors["model.embed_tokens_extend.audio_embed.audio_projection.speech.0.weight"] = torch.randn(
        16, 16
    )
    (folder / "model.safetensors").unlink()
    stored = {name: values.to(torch.bfloat16) for name, values in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def _widen_tokenizer(folder: Path) -> None:
    """Tokens that no text has, up to the one that stands for pictures."""
    path, mark = folder / "tokenizer.json", "<|endoftext10|>"
    told = json.loads(path.read_text("utf-8"))
    first = text.PIECES + len(text.ADDED)
    told["model"]["vocab"] |= {f"unused {i}": i for i in range(text.PIECES, kinds.PHI4_PICTURE)}
    for i, token in enumerate(text.ADDED):
        del told["model"]["vocab"][f"unused {text.PIECES + i}"]
        told["model"]["vocab"][token] = text.PIECES + i
    assert len(told["model"]["vocab"]) == kinds.PHI4_PICTURE > first
    flags = {key: value for key, value in told["added_tokens"][0].items() if key != "id"}
    told["added_tokens"].append({"id": kinds.PHI4_PICTURE, **flags, "content": mark})
    path.write_text(json.dumps(told), "utf-8")
    vocab = told["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    known = settings["added_tokens_decoder"]
    known[str(kinds.PHI4_PICTURE)] = {**known[str(text.PIECES)], "content": mark}
    path.write_text(json.dumps(settings), "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]) / "source", wide="wide" in sys.argv[2:])
