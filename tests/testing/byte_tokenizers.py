"""A byte-level tokenizer in ``tokenizer.json`` (256 bytes, a few merges, three special tokens), and
a checkpoint of zeros that has it. Needs nothing but Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from testing import small_checkpoints

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FIRST = 260  # id of the first special token
SIZE = 272
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it can be seen, else one above 255."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(b) if b in seen else chr(256 + hidden.index(b)) for b in range(256)]


def described() -> dict[str, Any]:
    """The file's content."""
    space = letters()[32]
    merges = [["h", "e"], ["l", "l"], [space, "w"], [space, space]]
    vocabulary = {letter: i for i, letter in enumerate(letters())}
    vocabulary |= {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": FIRST + i, "content": token, "special": True, **flags}
        for i, token in enumerate(SPECIALS)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {**level, "use_regex": True},
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def write(folder: Path, kind: str = "LlamaTokenizerFast", **generation: Any) -> Path:
    """A checkpoint of the Llama architecture in the new ``folder``, whose settings name the class
    ``kind``; ``generation`` goes into ``generation_config.json``."""
    ids = {"bos_token_id": FIRST, "eos_token_id": FIRST + 2, "pad_token_id": FIRST}
    small_checkpoints.write(folder, "LlamaForCausalLM", vocab_size=SIZE, head_dim=16, **ids)
    for name in ("tokenizer.model", "added_tokens.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    settings = {"tokenizer_class": kind, "eos_token": SPECIALS[2], "chat_template": CHATML}
    for name, content in (
        ("tokenizer.json", described()),
        ("tokenizer_config.json", settings),
        ("generation_config.json", ids | generation),
    ):
        (folder / name).write_text(json.dumps(content), "utf-8")
    return folder
