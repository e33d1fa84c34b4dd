"""Small checkpoints of every family member: its config's fields, shrunk; random weights; the right
kind of tokenizer.

Runs in the torch toolchain: ``python family_checkpoints.py ROOT [NAME…]`` leaves, for each member,
ROOT/SLUG/source in the layout of the hub's originals (never the one that transformers 5 saves),
ROOT/SLUG/resaved in the one it does save, ROOT/SLUG/{short,long}.npy: logits of transformers in
fp32 on the first 96 and on all 400 tokens, and ROOT/SLUG/told.json: those tokens, how many to
answer with, and the ids that packaged tokenizers must give.

Lengths: 256 tokens instead of 4096 before LongRoPE switches factors, windows of 255 instead of
2047.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from phipipe.assets import stories, tokenizer
from phipipe.evaluate.sanity import PARITY_TEXT
from phipipe.models import family

ORIGINAL, WINDOW, SHORT, LONG, ANSWER = 256, 255, 96, 400, 8
SEED = 20
# Sizes that no two of a model's linears share with its vocabulary: ORT's builder knows the LM head
# by its width.
SIZES: Mapping[str, dict[str, int]] = {
    "Phi-1.5": {"hidden_size": 128, "num_attention_heads": 2},
    "Phi-2": {"hidden_size": 160, "num_attention_heads": 2},  # heads of 80, as in the original
    "Phi-3-mini-4k": {
        "hidden_size": 192,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },  # heads of 96
    "Phi-3.5-mini": {"hidden_size": 192, "num_attention_heads": 2, "num_key_value_heads": 2},
    "Phi-3-medium-4k": {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 1},
    "Phi-3-medium-128k": {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 1},
    "Phi-4": {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 1},
    "Phi-4-reasoning": {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 1},
    "Phi-4-mini": {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1},
    "Phi-3.5-MoE": {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "num_local_experts": 4,
    },
    "Phi-mini-MoE": {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "num_local_experts": 4,
    },
}
MEMBERS = tuple(m for m in family.MEMBERS if m.name in SIZES)
# Regular expressions that cut text before byte-level BPE: cl100k's (Phi-4), o200k's (Phi-4-mini).
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n%s]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CL100K = rf"{_WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|" + _TAIL % ""
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_WORDS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORDS}?|"
    rf"\p{{N}}{{1,3}}|" + _TAIL % "/"
)
PATTERNS = {"Phi-4": CL100K, "Phi-4-reasoning": CL100K, "Phi-4-mini": O200K}
PIECES = 1000  # of byte-level BPE
ADDED = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_sep|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + "
    "message['content'] + "
    "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)


def slug(name: str) -> str:
    """A member's folder."""
    return name.lower().replace(".", "").replace(" ", "-")


def shrunk(member: family.Member) -> dict[str, Any]:
    """The member's ``config.json``, small: two layers, short contexts, rotary factors that make a
    difference."""
    config = {
        **member.config,
        **SIZES[member.name],
        "num_hidden_layers": 2,
        "torch_dtype": "bfloat16",
    }
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    config["intermediate_size"] = 4 * hidden if config["model_type"] == "phi" else 416
    config["vocab_size"] = (
        tokenizer.PIECES + 64 if member.tokenizer == "sentencepiece" else PIECES + 24
    )
    if member.tokenizer == "sentencepiece":
        config |= {
            "bos_token_id": 1,
            "eos_token_id": tokenizer.END_OF_TEXT,
            "pad_token_id": tokenizer.END_OF_TEXT,
        }
    else:
        config |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), PIECES)
    if config.get("rope_scaling"):
        pairs = int(hidden // heads * config.get("partial_rotary_factor", 1.0)) // 2
        scaling = dict(config["rope_scaling"])
        scaling["short_factor"] = [1 + i / (4 * pairs) for i in range(pairs)]
        scaling["long_factor"] = [1.5 + 8 * i / pairs for i in range(pairs)]
        if config["model_type"] == "phimoe":
            scaling |= {"short_mscale": 1.243163121016122, "long_mscale": 1.243163121016122}
            scaling["original_max_position_embeddings"] = ORIGINAL
        config |= {
            "rope_scaling": scaling,
            "max_position_embeddings": 32 * ORIGINAL,
            "sliding_window": 64 * ORIGINAL,
        }
        config["original_max_position_embeddings"] = ORIGINAL
    elif config.get("sliding_window"):
        config |= {"sliding_window": WINDOW}
        config |= dict.fromkeys(
            ("max_position_embeddings", "original_max_position_embeddings"), 512
        )
    return config


def make(member: family.Member, folder: Path) -> None:
    """Write the member's small checkpoint into the new ``folder``."""
    folder.mkdir(parents=True)
    config = shrunk(member)
    tokenizer.write_json(folder / "config.json", config)
    ends = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    tokenizer.write_json(
        folder / "generation_config.json", {**ends, "pad_token_id": config["pad_token_id"]}
    )
    if member.tokenizer == "sentencepiece":
        tokenizer.make(lines(), folder)
    else:
        _byte_level(member, folder)
    weights(config, shapes(config), folder)


def lines() -> list[str]:
    text = "".join(islice(stories.documents("train"), 600)) + PARITY_TEXT * 2
    for token in tokenizer.ADDED:
        text = text.replace(token, "")
    return text.splitlines()


def _byte_level(member: family.Member, folder: Path) -> None:
    """vocab.json, merges.txt and tokenizer.json as Phi-2 and Phi-4 have them, learned from the
    stories."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    pattern = PATTERNS.get(member.name)
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern:
        cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), cut])
    made.pre_tokenizer, made.decoder = cut, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(lines(), trainer)
    assert made.get_vocab_size() == PIECES
    made.model.save(str(folder))
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED])
    made.save(str(folder / "tokenizer.json"))
    flags = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(PIECES + i): {"content": token, **flags} for i, token in enumerate(ADDED)
        },
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), ADDED[0]),
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 16384,
        "tokenizer_class": "CodeGenTokenizer"
        if member.config["model_type"] == "phi"
        else "GPT2Tokenizer",
    }
    tokenizer.write_json(folder / "tokenizer_config.json", settings)


def weights(config: Mapping[str, Any], named: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Random, spread so that attention and logits are far from even; as bf16 under the names of the
    hub's originals."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED)
    tensors = {}
    for name, shape in named.items():
        values = torch.randn(shape)
        if name.endswith("norm.weight") or "layernorm.weight" in name:
            shift = 0 if config["model_type"] == "gemma3_text" else 1  # Gemma adds the 1 itself
            values = shift + 0.1 * values
        elif len(shape) == 1:
            values = 0.1 * values
        elif "embed_tokens" not in name or config["tie_word_embeddings"]:
            values = values * (1.6 if "_proj" in name else 1.0) / shape[1] ** 0.5
        tensors[name] = values.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the member's original checkpoint."""
    hidden, inner, table = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    width = (config.get("num_key_value_heads") or heads) * hidden // heads
    kind, found = config["model_type"], {"model.embed_tokens.weight": (table, hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = {"input_layernorm.weight": (hidden,)}
        if kind == "phi3":
            layer |= {
                "self_attn.qkv_proj.weight": (hidden + 2 * width, hidden),
                "mlp.down_proj.weight": (hidden, inner),
            }
            layer |= {
                "self_attn.o_proj.weight": (hidden, hidden),
                "mlp.gate_up_proj.weight": (2 * inner, hidden),
            }
        else:
            output = "dense" if kind == "phi" else "o_proj"
            for name, rows in (
                ("q_proj", hidden),
                ("k_proj", width),
                ("v_proj", width),
                (output, hidden),
            ):
                layer |= {
                    f"self_attn.{name}.weight": (rows, hidden),
                    f"self_attn.{name}.bias": (rows,),
                }
            layer["input_layernorm.bias"] = (hidden,)
        if kind == "phi":
            layer |= {"mlp.fc1.weight": (inner, hidden), "mlp.fc1.bias": (inner,)}
            layer |= {"mlp.fc2.weight": (hidden, inner), "mlp.fc2.bias": (hidden,)}
        else:
            layer["post_attention_layernorm.weight"] = (hidden,)
        if kind == "phimoe":
            layer["post_attention_layernorm.bias"] = (hidden,)
            layer["block_sparse_moe.gate.weight"] = (config["num_local_experts"], hidden)
            for e in range(config["num_local_experts"]):
                expert = f"block_sparse_moe.experts.{e}"
                layer |= {f"{expert}.{w}.weight": (inner, hidden) for w in ("w1", "w3")}
                layer[f"{expert}.w2.weight"] = (hidden, inner)
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    last = "model.final_layernorm" if kind == "phi" else "model.norm"
    found[f"{last}.weight"] = (hidden,)
    if kind != "phi3":
        found[f"{last}.bias"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (table, hidden)
    if kind == "phi" or config.get("lm_head_bias"):
        found["lm_head.bias"] = (table,)
    return found


def read(source: Path, text: str) -> list[int]:
    """The ids of ``text`` by the checkpoint's ``tokenizer.json``, which is the truth where there is
    one: transformers makes another tokenizer of some."""
    from phipipe.models import transformers_files

    path = source / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer

        return list(Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids)
    return list(transformers_files.load(source)(text, add_special_tokens=False)["input_ids"])


def fill(
    root: Path, members: Iterable[family.Member], make: Callable[[family.Member, Path], None]
) -> None:
    """Leave in ``root`` what the module's head says of each member."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from phipipe.backends import torch as baseline
    from phipipe.models import greedy, transformers_files
    from phipipe.models.layerwise import Layerwise

    text = stories.file_text("evaluation")
    for member in members:
        folder = root / slug(member.name)
        make(member, folder / "source")
        known = transformers_files.load(folder / "source")
        ids = known(text[: 20 * LONG], add_special_tokens=False)["input_ids"][:LONG]
        runtime, layers = baseline.open(folder / "source"), Layerwise(folder / "source")
        prompts = [ids[:SHORT], ids]
        whole = [runtime.logits(prompt) for prompt in prompts]
        for window, logits in zip(("short", "long"), whole, strict=True):
            np.save(folder / f"{window}.npy", logits)
        told: dict[str, Any] = {"ids": ids, "answers": ANSWER}
        parts = zip(whole, layers.logits(prompts), strict=True)
        told["layerwise"] = [float(np.abs(logits - part).max()) for logits, part in parts]
        told["answered"] = [
            [list(runtime.generate(p, ANSWER)) for p in prompts],
            greedy.answer(layers, prompts, ANSWER),
        ]
        runtime.close()
        config = transformers_files.config_of(folder / "source")
        model = AutoModelForCausalLM.from_pretrained(
            folder / "source", config=config, dtype=torch.bfloat16
        )
        model.save_pretrained(folder / "resaved")
        known.save_pretrained(folder / "resaved")
        told["parity"] = {kind: read(folder / kind, PARITY_TEXT) for kind in ("source", "resaved")}
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    chosen = set(sys.argv[2:])
    fill(Path(sys.argv[1]), [m for m in MEMBERS if not chosen or m.name in chosen], make)
