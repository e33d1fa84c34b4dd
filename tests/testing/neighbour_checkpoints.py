"""Small checkpoints of Phi's neighbours: real configs, shrunk, and tokenizers of their kinds.

Runs in the torch toolchain: ``python -m testing.neighbour_checkpoints ROOT [NAME…]`` leaves there
what ``family_checkpoints`` leaves of the Phi family. Names and shapes of the weights are those that
transformers itself gives the architecture.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phipipe.assets import tokenizer
from phipipe.models import family
from testing import family_checkpoints as phi

ORIGINAL, WINDOW, PIECES = phi.ORIGINAL, phi.WINDOW, phi.PIECES


def _sizes(hidden: int, heads: int, head: int, kv_heads: int = 1, **more: int) -> dict[str, int]:
    shape = {"hidden_size": hidden, "num_attention_heads": heads, "head_dim": head}
    return {**shape, "num_key_value_heads": kv_heads, **more}


# No width of a layer's output is that of the vocabulary (1024), by which ORT's builder knows the
# LM head.
SIZES: Mapping[str, dict[str, int]] = {
    "Phi-4 as Llama": _sizes(256, 2, 128),
    "Llama-3.2-1B": _sizes(256, 4, 64),
    "Llama-3.1-8B": _sizes(256, 2, 128),
    "Mistral-7B-v0.3": _sizes(256, 2, 128),
    "Mistral-Nemo": _sizes(192, 2, 128),
    "Mistral-7B-v0.1": _sizes(256, 2, 128),
    "Qwen2.5-0.5B": _sizes(256, 4, 64),
    "Qwen2.5-7B": _sizes(256, 2, 128),
    "Qwen3-0.6B": _sizes(192, 2, 128),
    "Qwen3-8B": _sizes(256, 2, 128),
    "SmolLM2-135M": _sizes(192, 3, 64),
    "SmolLM3-3B": _sizes(256, 2, 128, num_hidden_layers=4),
    "Gemma-3-1B": _sizes(192, 2, 256, num_hidden_layers=6),
}
MEMBERS = tuple(m for m in family.MEMBERS if m.name in SIZES)
# Keys of a head's width that the originals leave to their readers.
IMPLIED = ("Mistral-7B-v0.3", "Mistral-7B-v0.1", "Qwen2.5-0.5B", "Qwen2.5-7B")
IMPLIED += ("SmolLM2-135M", "SmolLM3-3B")
# Regular expressions that cut text before byte-level BPE: Llama 3's is cl100k's; Qwen's takes one
# digit at a time; Tekken's is o200k's without English endings.
QWEN = phi.CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = phi._UPPER, phi._LOWER
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    + phi._TAIL % "/"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' + "
    "message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


class Bytes:
    """Byte-level BPE in ``tokenizer.json``: how text is cut (None: as GPT-2 does, digits apart),
    the added tokens, which of them begin and end a text or a turn, and the class's name."""

    def __init__(
        self,
        *,
        pattern: str | None,
        added: tuple[str, ...],
        bos: str | None,
        eos: str,
        ends: tuple[str, ...],
        template: str,
        kind: str,
        adds_bos: bool = False,
    ) -> None:
        self.pattern, self.added, self.bos, self.eos, self.ends = pattern, added, bos, eos, ends
        self.template, self.kind, self.adds_bos = template, kind, adds_bos


_CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HEADS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>"),
)
LLAMA3 = Bytes(
    pattern=phi.CL100K,
    added=_HEADS,
    bos=_HEADS[0],
    eos="<|eot_id|>",
    ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    template=HEADERS,
    kind="PreTrainedTokenizerFast",
    adds_bos=True,
)
QWENS = Bytes(
    pattern=QWEN,
    added=_CHAT,
    bos=None,
    eos="<|im_end|>",
    ends=("<|im_end|>", "<|endoftext|>"),
    template=CHATML,
    kind="Qwen2Tokenizer",
)
BYTES: Mapping[str, Bytes] = {
    "Phi-4 as Llama": Bytes(
        pattern=phi.CL100K,
        added=phi.ADDED,
        bos="<|endoftext|>",
        eos="<|im_end|>",
        ends=("<|im_end|>",),
        template=phi.TEMPLATE,
        kind="GPT2Tokenizer",
    ),
    "Llama-3.2-1B": LLAMA3,
    "Llama-3.1-8B": LLAMA3,
    "Mistral-Nemo": Bytes(
        pattern=TEKKEN,
        added=("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"),
        bos="<s>",
        eos="</s>",
        ends=("</s>",),
        template=INST,
        kind="PreTrainedTokenizerFast",
        adds_bos=True,
    ),
    **dict.fromkeys(("Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen3-0.6B", "Qwen3-8B"), QWENS),
    "SmolLM2-135M": Bytes(
        pattern=None,
        added=_CHAT,
        bos="<|im_start|>",
        eos="<|im_end|>",
        ends=("<|im_end|>",),
        template=CHATML,
        kind="GPT2Tokenizer",
    ),
    "SmolLM3-3B": Bytes(
        pattern=phi.CL100K,
        added=(*_HEADS, "<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
        ends=("<|im_end|>",),
        template=CHATML,
        kind="PreTrainedTokenizerFast",
    ),
}


def shrunk(member: family.Member) -> dict[str, Any]:
    """The member's ``config.json``, small: few layers, short contexts."""
    sizes, config = SIZES[member.name], dict(member.config)
    config |= {"num_hidden_layers": 2, "torch_dtype": "bfloat16", "intermediate_size": 416} | sizes
    if member.name in IMPLIED:
        assert config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]
        del config["head_dim"]
    layers, context = config["num_hidden_layers"], 32 * ORIGINAL
    if scaling := config.get("rope_scaling"):
        config["rope_scaling"] = scaling | {"original_max_position_embeddings": ORIGINAL}
    if config.get("sliding_window"):
        wide = config["sliding_window"] >= config["max_position_embeddings"]
        config["sliding_window"] = context if wide else WINDOW
    config["max_position_embeddings"] = context
    if "no_rope_layers" in config:
        config["no_rope_layers"] = config["no_rope_layers"][:layers]
    if "max_window_layers" in config:
        config["max_window_layers"] = layers
    config["vocab_size"] = PIECES + 24 if member.name in BYTES else tokenizer.PIECES + 64
    return config


def make(member: family.Member, folder: Path) -> None:
    """Write the member's small checkpoint into the new ``folder``."""
    folder.mkdir(parents=True)
    kind = BYTES.get(member.name)
    ends = byte_level(kind, folder) if kind else sentencepiece(member, folder)
    config = shrunk(member) | ends
    tokenizer.write_json(folder / "config.json", config)
    tokenizer.write_json(folder / "generation_config.json", ends)
    phi.weights(config, shapes(config), folder)


def byte_level(kind: Bytes, folder: Path) -> dict[str, Any]:
    """Write the tokenizer; returns the ids that a config says of it."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    made = Tokenizer(models.BPE())
    first = (
        pre_tokenizers.Split(Regex(kind.pattern), "isolated")
        if kind.pattern
        else pre_tokenizers.Digits(individual_digits=True)
    )
    if kind.kind == "Qwen2Tokenizer":  # accents are joined with their letters first
        made.normalizer = normalizers.NFC()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind.pattern is None)
    made.pre_tokenizer = pre_tokenizers.Sequence([first, level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(phi.lines(), trainer)
    assert made.get_vocab_size() == PIECES
    if kind.kind != "PreTrainedTokenizerFast":
        made.model.save(str(folder))
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in kind.added])
    ids = {token: PIECES + i for i, token in enumerate(kind.added)}
    if kind.adds_bos:
        begin = processors.TemplateProcessing(
            single=f"{kind.bos} $A", special_tokens=[(kind.bos, ids[str(kind.bos)])]
        )
        made.post_processor = processors.Sequence([processors.ByteLevel(), begin])
    made.save(str(folder / "tokenizer.json"))
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    tokenizer.write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(i): {"content": token, **flags, "special": True} for token, i in ids.items()
            },
            "bos_token": kind.bos,
            "eos_token": kind.eos,
            "pad_token": kind.added[0],
            "unk_token": None,
            "chat_template": kind.template,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 32 * ORIGINAL,
            "tokenizer_class": kind.kind,
        },
    )
    ends = [ids[token] for token in kind.ends]
    return {
        "bos_token_id": ids[kind.bos or kind.added[0]],
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": ids[kind.added[0]],
    }


def sentencepiece(member: family.Member, folder: Path) -> dict[str, Any]:
    """Write the tokenizer, as Mistral's and Gemma's: the beginning of a text has a token. Returns
    the ids that a config says of it."""
    import json

    gemma = member.config["model_type"] == "gemma3_text"
    names = {"<|user|>": "<start_of_turn>", "<|end|>": "<end_of_turn>"} if gemma else {}
    names |= {} if gemma else {"<|user|>": "[INST]", "<|end|>": "[/INST]"}
    tokenizer.make(phi.lines(), folder)
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text("utf-8"))
    for token in told["added_tokens"]:
        token |= {"content": names.get(token["content"], token["content"]), "rstrip": False}
    begin = {"id": "<s>", "ids": [1], "tokens": ["<s>"]}
    told["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": begin},
    }
    if gemma:  # no space is put before the first word
        told["normalizer"] = told["normalizer"]["normalizers"][1]
        told["decoder"]["decoders"].pop()
        model = io.BytesIO((folder / "tokenizer.model").read_bytes())
        (folder / "tokenizer.model").write_bytes(_without_dummy_prefix(model.getvalue()))
    tokenizer.write_json(path, told)
    added = {names.get(token, token): i for token, i in tokenizer.ADDED_IDS.items()}
    tokenizer.write_json(folder / "added_tokens.json", added)
    settings = tokenizer.tokenizer_config()
    for entry in settings["added_tokens_decoder"].values():
        entry |= {"content": names.get(entry["content"], entry["content"]), "rstrip": False}
    settings |= {"add_bos_token": True, "eos_token": "</s>", "chat_template": INST}
    if gemma:
        settings |= {"tokenizer_class": "GemmaTokenizer", "chat_template": TURNS}
    tokenizer.write_json(folder / "tokenizer_config.json", settings)
    special = {key: settings[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokenizer.write_json(folder / "special_tokens_map.json", special)
    ends = [2, added["<end_of_turn>"]] if gemma else 2
    return {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": tokenizer.END_OF_TEXT}


def _without_dummy_prefix(model: bytes) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    parsed = sentencepiece_model_pb2.ModelProto.FromString(model)
    parsed.normalizer_spec.add_dummy_prefix = False
    written: bytes = parsed.SerializeToString()
    return written


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that transformers stores of such a model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {n: s for n, s in found.items() if n != "lm_head.weight" or not _tied(config)}


def _tied(config: Mapping[str, Any]) -> bool:
    return bool(config["tie_word_embeddings"])


if __name__ == "__main__":
    chosen = set(sys.argv[2:])
    phi.fill(Path(sys.argv[1]), [m for m in MEMBERS if not chosen or m.name in chosen], make)
