"""Runs in the torch toolchain: ``python -m testing.reference ROOT TEXT COUNT MODEL...``.

Writes ROOT/ids.json, the first COUNT tokens of TEXT, ROOT/parity.json, those of the text that
tokenizers are compared on, and ROOT/MODEL.npy for each folder ROOT/MODEL: float32
[positions, vocabulary], what transformers makes of that checkpoint in fp32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from phipipe.evaluate.sanity import PARITY_TEXT


def main(root: Path, text: Path, count: int, names: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(root / names[0])
    ids = tokenizer(text.read_text("utf-8")[: 20 * count], add_special_tokens=False)["input_ids"][
        :count
    ]
    (root / "ids.json").write_text(json.dumps(ids))
    (root / "parity.json").write_text(
        json.dumps(tokenizer(PARITY_TEXT, add_special_tokens=False)["input_ids"])
    )
    for name in names:
        model = AutoModelForCausalLM.from_pretrained(
            root / name, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.inference_mode():
            np.save(root / f"{name}.npy", model.eval()(torch.tensor([ids])).logits[0].numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
