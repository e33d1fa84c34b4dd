"""Runs in the torch toolchain, with PEFT on its path: ``python merge_driver.py ROOT``.

Trains nothing: PEFT makes adapters of many kinds with random numbers, saves them, and merges them;
``facts.json`` says how far phipipe's merge is from PEFT's, case by case.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from testing.drive import answer, message
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from phipipe.hub import take
from phipipe.models import checkpoints, merge

TINY = take.BUILTIN_MODELS["tiny-phi3"]
VOCABULARY = json.loads((TINY / "config.json").read_text())["vocab_size"]
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
LINEAR = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "llama": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
}
IDS = torch.arange(3, 43).reshape(1, -1)
# name → base, settings; `rows`: by how many the table of tokens was made longer
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("phi3", {}),
    "rslora": ("phi3", {"use_rslora": True}),
    "dora": ("phi3", {"use_dora": True}),
    "patterns": (
        "phi3",
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.self_attn.o_proj": 32}},
    ),
    "layers": ("phi3", {"layers_to_transform": [1]}),
    "linear": ("phi3", {"target_modules": "all-linear"}),
    "saved": ("phi3", {"modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
    "table": ("phi3", {"target_modules": ["o_proj", "embed_tokens", "lm_head"]}),
    "longer": ("phi3", {"rows": 8}),
    "apart": ("llama", {}),
    "apart, dora": ("llama", {"use_dora": True}),
    "tied": ("tied", {}),
    "tied, table": ("tied", {"target_modules": ["o_proj", "embed_tokens"]}),
    "tied, saved": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "tied, longer": ("tied", {"rows": 8}),
}


def base(root: Path, kind: str, dtype: torch.dtype) -> Path:
    """A small model with random weights, as it is saved."""
    folder = root / f"{kind}-{dtype}".replace("torch.", "")
    if folder.is_dir():
        return folder
    torch.manual_seed(3)
    config = Phi3Config(**SHAPE) if kind == "phi3" else LlamaConfig(**SHAPE)
    config.tie_word_embeddings = kind == "tied"
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).to(dtype)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (TINY / name).is_file():
            shutil.copyfile(TINY / name, folder / name)
    return folder


def opened(folder: Path, rows: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if rows:
        model.resize_token_embeddings(VOCABULARY + rows, mean_resizing=False)
    return model


def adapter(root: Path, name: str, kind: str, told: dict[str, Any], rows: int) -> Path:
    """An adapter that PEFT saves, with random numbers in all that is trained."""
    modules = LINEAR.get(kind, LINEAR["llama"])
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, **{"target_modules": modules, **told}
    )
    model = get_peft_model(opened(base(root, kind, torch.float32), rows), config)
    torch.manual_seed(4)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    folder = root / "adapters" / name
    model.save_pretrained(folder, save_embedding_layers=True if rows else "auto")
    return folder


def ours(root: Path, name: str, source: Path, added: Path) -> Path:
    out = root / "merged" / f"{name} {source.name}"
    out.mkdir(parents=True)
    merge.merge({"base": source, "adapter": added}, out, {})
    return out


def compared(root: Path, name: str) -> dict[str, Any]:
    """In bf16, our weights with PEFT's; in fp32, our logits with those of the model before it is
    merged, which is the one that was trained."""
    kind, told = CASES[name]
    told = dict(told)
    rows = told.pop("rows", 0)
    added = adapter(root, name, kind, told, rows)
    half, whole = (base(root, kind, dtype) for dtype in (torch.bfloat16, torch.float32))
    got = load_file(ours(root, name, half, added) / "model.safetensors")
    theirs = PeftModel.from_pretrained(opened(half, rows), added).merge_and_unload().state_dict()
    before = opened(half, rows).state_dict()
    apart = "lm_head.weight" in got and kind == "tied"  # PEFT changes both of a tied pair
    steps = {
        tensor: ulps(before[tensor], got[tensor], theirs[tensor])
        for tensor in got
        if not (apart and tensor == "lm_head.weight")
    }
    trained = PeftModel.from_pretrained(opened(whole, rows), added).eval()
    merged = AutoModelForCausalLM.from_pretrained(ours(root, name, whole, added), dtype="auto")
    with torch.no_grad():
        gap = (trained(IDS).logits - merged.eval()(IDS).logits).abs().max()
        moved = (trained(IDS).logits - opened(whole, rows).eval()(IDS).logits).abs().max()
    read = checkpoints.read(root / "merged" / f"{name} {half.name}")
    return {
        "ulps": max(steps.values()),
        "missing": sorted(
            theirs.keys() - got.keys() - ({"lm_head.weight"} if read.tied else set())
        ),
        "gap": float(gap),
        "moved": float(moved),
        "tied": read.tied,
        "vocabulary": read.vocab_size,
    }


def ulps(before: torch.Tensor, got: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, in steps of bf16 at the largest of what was added and its sum: PEFT
    rounds the change, too."""
    one, other, old = got.double(), theirs.double(), before.double()
    size = torch.maximum(torch.maximum(other.abs(), old.abs()), (one - old).abs())
    return float(((one - other).abs() / (size * 2**-8).clamp(min=1e-30)).max())


def joined(root: Path) -> dict[str, bool]:
    """An adapter of separate projections on joined ones, and the reverse: the same bits."""
    fused, apart = root / "fused", root / "apart"
    shutil.copytree(base(root, "llama", torch.bfloat16), apart)
    shutil.copytree(base(root, "phi3", torch.bfloat16), fused)
    weights = load_file(apart / "model.safetensors")
    save_file(fuse(weights), fused / "model.safetensors", metadata={"format": "pt"})
    found = {}
    for name in ("apart", "plain"):
        added = root / "adapters" / name
        one, other = (
            load_file(ours(root, f"joined {name}", folder, added) / "model.safetensors")
            for folder in (fused, apart)
        )
        again = fuse(other)
        found[name] = all(torch.equal(one[tensor], again[tensor]) for tensor in one)
    return found


def fuse(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    made = {n: w for n, w in weights.items() if ".self_attn." not in n and ".mlp." not in n}
    for layer in range(2):
        at = f"model.layers.{layer}"
        for name, parts in (("self_attn.qkv", ("q", "k", "v")), ("mlp.gate_up", ("gate", "up"))):
            room = name.partition(".")[0]
            made[f"{at}.{name}_proj.weight"] = torch.cat(
                [weights[f"{at}.{room}.{part}_proj.weight"] for part in parts]
            )
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            made[f"{at}.{name}.weight"] = weights[f"{at}.{name}.weight"]
    return made


def broken(root: Path, name: str, value: float) -> list[str]:
    """What is said of an adapter with one number ``value``."""
    folder = root / f"broken {name}"
    shutil.copytree(root / "adapters" / "plain", folder)
    weights = load_file(folder / "adapter_model.safetensors")
    first = sorted(weights)[0]
    weights[first][0, 0] = value
    save_file(weights, folder / "adapter_model.safetensors")
    source = base(root, "phi3", torch.bfloat16)
    return message(lambda: ours(root, f"broken {name}", source, folder))


def again(root: Path) -> bool:
    """Whether the bytes are the same with another number of threads."""
    source, added = base(root, "phi3", torch.bfloat16), root / "adapters" / "plain"
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(ours(root, f"again {threads}", source, added) / "model.safetensors")
    return made[0].read_bytes() == made[1].read_bytes()


if __name__ == "__main__":
    here, few = Path(sys.argv[1]), sys.argv[2:]  # all cases where none is named
    parts = {
        **{name: partial(compared, here, name) for name in CASES},
        "joined": partial(joined, here),
        "nan": partial(broken, here, "nan", float("nan")),
        "again": partial(again, here),
    }
    answer(here / "facts.json", {name: parts[name] for name in few or parts})
