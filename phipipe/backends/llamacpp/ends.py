"""Tokens that end an answer, as a GGUF names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.models import stop_tokens

if TYPE_CHECKING:
    from auto_round.export.export_to_gguf.conversion import TextModel

# By these names alone llama.cpp knows that a token ends an answer (`special_eog_ids` in its
# src/llama-vocab.cpp).
KNOWN = frozenset({"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"})


def add(model: TextModel, source: Path) -> None:
    """Let ``model`` write every end of ``source``, a staged checkpoint, beside the one that the
    converter picks: the first that llama.cpp knows by no name as the end of a turn, the next as
    that of a message; the format has no place for more."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    ends = stop_tokens.known(source, config)
    set_vocab = model.set_vocab

    def set_vocab_and_ends() -> None:
        set_vocab()
        writer = model.gguf_writer
        written = {name: value.value for part in writer.kv_data for name, value in part.items()}
        tokens = written["tokenizer.ggml.tokens"]
        picked = written.get("tokenizer.ggml.eos_token_id")
        more = [i for i in ends if i != picked and i < len(tokens) and tokens[i] not in KNOWN]
        for number, write in zip(
            more, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False
        ):
            write(number)

    model.set_vocab = set_vocab_and_ends
