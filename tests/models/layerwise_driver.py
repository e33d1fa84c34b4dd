"""Runs in the torch toolchain: ``python layerwise_driver.py FOLDER`` leaves FOLDER/facts.json.

Compares ``layerwise.Layerwise`` with the whole model in memory, for every architecture and storage
that matters.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Phi3Config, PhiConfig, PhimoeConfig

from phipipe.errors import SourceError
from phipipe.hub.take import BUILTIN_MODELS
from phipipe.models import greedy, layerwise, products
from phipipe.models.products import Quick

TINY = BUILTIN_MODELS["tiny-phi3"]
SHAPE: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0 + i / 50 for i in range(8)]}
LONGROPE |= {"long_factor": [1.0 + i / 2 for i in range(8)], "rope_theta": 10000.0}
ARCHITECTURES: dict[str, Any] = {
    "tied": Phi3Config(**SHAPE, tie_word_embeddings=True),
    "window": Phi3Config(**SHAPE, sliding_window=20),
    "longrope": Phi3Config(**SHAPE, rope_parameters=LONGROPE, original_max_position_embeddings=32),
    "phi": PhiConfig(**SHAPE),
    "phimoe": PhimoeConfig(**SHAPE, num_local_experts=4),
}
# The embedded model, its weights stored otherwise.
STORED: dict[str, Callable[[str, torch.Tensor], torch.Tensor]] = {
    "bf16": lambda name, tensor: tensor,
    "fp16": lambda name, tensor: tensor.half(),
    "fp32": lambda name, tensor: tensor.float(),
    "mixed": lambda name, tensor: tensor.float() if "norm" in name else tensor,
}


def made(folder: Path, config: Any) -> Path:
    """A checkpoint in bf16 with random weights large enough for logits that differ."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def stored(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    shutil.copytree(TINY, folder)
    weights = load_file(folder / "model.safetensors")
    changed = {name: change(name, tensor).contiguous() for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def answer(model: Any, prompt: list[int], limit: int) -> list[int]:
    """Greedy tokens of the whole model."""
    ends = model.generation_config.eos_token_id
    ids, cache, found = torch.tensor([prompt]), None, list[int]()
    for _ in range(limit):
        done = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = done.past_key_values
        found.append(int(done.logits[0, -1].argmax()))
        if found[-1] in (ends if isinstance(ends, list) else [ends]):
            break
        ids = torch.tensor([found[-1:]])
    return found


@torch.inference_mode()
def compared(folder: Path) -> dict[str, Any]:
    """Whether logits and answers are the whole model's to the bit, and what was in memory."""
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    random = np.random.default_rng(3)
    windows = random.integers(3, whole.config.vocab_size, (5, 64)).tolist()
    with Quick():  # the products of both are by one library
        expected = [
            whole(input_ids=torch.tensor([w]), use_cache=False).logits[0].numpy() for w in windows
        ]
    model = layerwise.Layerwise(folder)
    logits = list(model.logits(windows))
    prompts = [windows[i][: 5 + 4 * i] for i in range(3)]
    # each weight begins at a round place
    layer = sum(-(-t.numel() // 16) * 16 for t in whole.base_model.layers[0].parameters())
    return {
        "equal": all(np.array_equal(a, b) for a, b in zip(expected, logits, strict=True)),
        "count": len(logits),
        "dtype": str(logits[0].dtype),
        "spread": float(np.std(expected[0])),
        **answers(model, whole, prompts),
        "again": np.array_equal(logits[0], next(iter(model.logits(windows[:1])))),
        "layers_in_memory": model._widened.values / layer,
        "none": greedy.answer(model, [], 40),
    }


def answers(model: Any, whole: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """Whether all answers are the whole model's, and how many passes the longest took."""
    with Quick():
        expected = [answer(whole, prompt, 40) for prompt in prompts]
    advance, passes = model.advance, list[int]()

    def counted(given: Any, *told: Any) -> None:
        passes.append(len(given))
        advance(given, *told)

    model.advance = counted
    found = {"answers": greedy.answer(model, prompts, 40) == expected, "passes": len(passes)}
    found["answers_of_vectors"] = (
        greedy.answer(model, [model.embed(prompt) for prompt in prompts], 40) == expected
    )
    limits = range(6)
    found["limits"] = all(
        greedy.answer(model, prompts, n) == [ids[:n] for ids in expected] for n in limits
    )
    products.FEW, few = 0, products.FEW  # as of many texts
    found["answers_of_many"] = greedy.answer(model, prompts, 40) == expected
    products.FEW = few
    pieces = model._widened.can_be_stored
    return found | {"tokens": max(map(len, expected)), "in_pieces": pieces}


def refusals(root: Path) -> dict[str, str]:
    """What is said of weights of which one value is no number, by the tensor that has it."""
    said = {}
    for spoiled in (
        "model.layers.2.mlp.down_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ):

        def change(name: str, tensor: torch.Tensor, spoiled: str = spoiled) -> torch.Tensor:
            if name == spoiled:
                tensor[3, 5] = float("nan") if "layers" in name else float("inf")
            return tensor

        try:
            list(layerwise.Layerwise(stored(root / spoiled, change)).logits([[3, 4, 5]]))
        except SourceError as error:
            said[spoiled] = error.message
    return said


def main(root: Path) -> None:
    facts = {name: compared(made(root / name, config)) for name, config in ARCHITECTURES.items()}
    facts |= {name: compared(stored(root / name, change)) for name, change in STORED.items()}
    facts["refusals"] = refusals(root)
    layerwise.TOGETHER = 100  # a window at a time
    facts["apart"] = compared(root / "bf16")
    (root / "facts.json").write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
