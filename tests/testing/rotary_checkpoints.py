"""Small checkpoints of the Llama layout, one for each kind of rotary scaling and each spelling.

Runs in the torch toolchain: ``python rotary_checkpoints.py ROOT`` leaves, for each of ``KINDS``,
ROOT/KIND/{source,respelled} (``rope_scaling`` as the hub has it, ``rope_parameters`` as
transformers 5 saves it), ROOT/KIND/{short,long}.npy: transformers' logits in fp32 on the first 96
and on all 400 tokens, and ROOT/KIND/told.json as ``family_driver`` reads it; and
what its frequencies are. All share one set of
weights; only the positions differ. The original context is 256 tokens.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from phipipe.assets import stories, tokenizer
from phipipe.evaluate.sanity import PARITY_TEXT
from phipipe.models import layouts

ORIGINAL, SHORT, LONG, ANSWER, SEED = 256, 96, 400, 8, 20
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 256, 416, 2, 4, 2
PAIRS = HIDDEN // HEADS // 2
WIDE: dict[str, Any] = {"original_max_position_embeddings": ORIGINAL}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, **WIDE}
LISTS: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1 + i / (4 * PAIRS) for i in range(PAIRS)],
    "long_factor": [1.5 + 8 * i / PAIRS for i in range(PAIRS)],
    **WIDE,
}
KINDS: Mapping[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        **WIDE,
    },
    "yarn": YARN,
    "yarn-betas": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0},
    "yarn-attention": {**YARN, "attention_factor": 1.3},
    "yarn-mscale": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn-whole": {**YARN, "truncate": False},
    "longrope": LISTS,
    "longrope-attention": {**LISTS, "attention_factor": 1.3},
}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": tokenizer.END_OF_TEXT,
    "pad_token_id": tokenizer.END_OF_TEXT,
    "head_dim": HIDDEN // HEADS,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": 4 * ORIGINAL,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.48.0",
    "vocab_size": tokenizer.PIECES + 64,
}
THETA = 10000.0


def spelled(scaling: dict[str, Any] | None, *, new: bool) -> dict[str, Any]:
    """``config.json`` with ``scaling`` in the hub's spelling, or in that of transformers 5."""
    if new:
        rope = {"rope_theta": THETA, **(scaling or {"rope_type": "default"})}
        return {**CONFIG, "rope_parameters": rope, "transformers_version": "5.5.0"}
    return {**CONFIG, "rope_scaling": scaling, "rope_theta": THETA}


def weights(path: Path) -> None:
    """Random bf16 weights, spread so that attention and logits are far from even."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED)
    sizes = layouts.Sizes(
        vocab=CONFIG["vocab_size"],
        hidden=HIDDEN,
        inner=INNER,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head=HIDDEN // HEADS,
    )
    tensors = {}
    for name, shape in layouts.wanted(layouts.LAYOUTS["LlamaForCausalLM"], sizes).items():
        values = torch.randn(shape)
        if len(shape) == 1:
            values = 1 + 0.1 * values
        elif name != layouts.EMBEDDING:
            values = values * (1.6 if "_proj" in name else 1.0) / shape[1] ** 0.5
        tensors[name] = values.to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


def _lines() -> list[str]:
    text = "".join(islice(stories.documents("train"), 600)) + PARITY_TEXT * 2
    for token in tokenizer.ADDED:
        text = text.replace(token, "")
    return text.splitlines()


def _note_frequencies(scaling: dict[str, Any], path: Path) -> None:
    """For a context that is short and one that is long: transformers' frequencies, in radians per
    token, and what it multiplies cosines and sines with."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**spelled(scaling, new=False))
    make, told = ROPE_INIT_FUNCTIONS[scaling["rope_type"]], {}
    for context in (SHORT, LONG):
        frequencies, factor = make(config, torch.device("cpu"), seq_len=context)
        told[context] = [frequencies.tolist(), float(factor)]
    path.write_text(json.dumps(told))


def main(root: Path) -> None:
    import numpy as np

    from phipipe.backends import torch as baseline
    from phipipe.models import transformers_files

    base = root / "base"
    base.mkdir(parents=True)
    weights(base / "model.safetensors")
    tokenizer.make(_lines(), base)
    ends = {key: CONFIG[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tokenizer.write_json(base / "generation_config.json", ends)
    for kind, scaling in KINDS.items():
        folder = root / kind
        for name, new in (("source", False), ("respelled", True)):
            shutil.copytree(base, folder / name)
            tokenizer.write_json(folder / name / "config.json", spelled(scaling, new=new))
        if scaling:
            _note_frequencies(scaling, folder / "frequencies.json")
        known = transformers_files.load(folder / "source")
        text = stories.file_text("evaluation")
        ids = known(text[: 20 * LONG], add_special_tokens=False)["input_ids"][:LONG]
        parity = known(PARITY_TEXT, add_special_tokens=False)["input_ids"]
        runtime = baseline.open(folder / "source")
        for window, prompt in (("short", ids[:SHORT]), ("long", ids)):
            np.save(folder / f"{window}.npy", runtime.logits(prompt))
        runtime.close()
        both = dict.fromkeys(("source", "respelled"), parity)
        told = {"ids": ids, "parity": both, "answers": ANSWER}
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
