"""The embedded model's tokenizer: SentencePiece BPE with byte fallback, and Phi-3's own tokens
after its pieces.

It is written twice, as the hub's Phi-3 checkpoints have it: ``tokenizer.model`` for llama.cpp and
SentencePiece, ``tokenizer.json`` for everything built on the tokenizers library. Both give the same
ids.
"""

from __future__ import annotations

import io
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from phipipe.steps import Json

PIECES = 2240  # of SentencePiece: <unk>, <s>, </s>, 256 bytes, then what was learned

# In Phi-3's order. All but the first swallow the white space after them, as Phi-3's do.
ADDED = (
    "<|endoftext|>",
    "<|assistant|>",
    *(f"<|placeholder{i}|>" for i in range(1, 5)),
    "<|system|>",
    "<|end|>",
    *(f"<|placeholder{i}|>" for i in range(5, 7)),
    "<|user|>",
)
ADDED_IDS = {token: PIECES + i for i, token in enumerate(ADDED)}
END_OF_TEXT, END = ADDED_IDS["<|endoftext|>"], ADDED_IDS["<|end|>"]
CONTEXT = 2048

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] in ['system', 'user', 'assistant'] %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endif %}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_SPECIAL = {"bos_token": "<s>", "eos_token": ADDED[0], "pad_token": ADDED[0], "unk_token": "<unk>"}


def make(lines: Iterable[str], folder: Path) -> None:
    """Learn the pieces from ``lines`` and write every tokenizer file."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars="".join(c for c in string.printable if not c.isspace()),
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=1,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(i) for i in range(PIECES)]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    special = {name: {"content": token, **flags} for name, token in _SPECIAL.items()}
    write_json(folder / "tokenizer.json", tokenizer_json(pieces))
    write_json(folder / "added_tokens.json", ADDED_IDS)
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", tokenizer_config())


def tokenizer_config() -> dict[str, Json]:
    """The content of ``tokenizer_config.json``."""
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in _added_tokens()
        },
        **_SPECIAL,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": CONTEXT,
        "padding_side": "left",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": False,
    }


def tokenizer_json(pieces: Sequence[str]) -> dict[str, Json]:
    """The content of ``tokenizer.json``: BPE with the vocabulary and the merges of a SentencePiece
    model."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    space = {"pattern": {"String": " "}, "content": "▁"}
    underline = {"pattern": {"String": "▁"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", **space}],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", **underline},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": _merges(pieces, ids),
        },
    }


def _merges(pieces: Sequence[str], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs to join, in the order of the pieces they make: SentencePiece joins the lowest id
    first."""
    merges = []
    for piece in pieces:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(a, b) for a, b in splits if a in ids and b in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def _added_tokens() -> list[dict[str, Json]]:
    flags = {"single_word": False, "lstrip": False, "normalized": False, "special": True}
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2, **ADDED_IDS}
    greedy = set(ADDED[1:])
    return [
        {"id": i, "content": token, "rstrip": token in greedy, **flags}
        for token, i in tokens.items()
    ]


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as the hub's are: indented, keys in the given order."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
