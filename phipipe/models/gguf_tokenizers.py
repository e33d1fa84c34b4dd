"""The tokenizer that a GGUF carries, as the files of a checkpoint.

llama.cpp keeps tokens, scores or merges, and a name for how text is cut into words. From these the
same ``tokenizer.json`` follows that the tokenizers library writes, and of SentencePiece's kind the
``tokenizer.model`` that it came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import sentencepiece_files
from phipipe.models.gguf_files import Header
from phipipe.steps import Json

# Kinds of tokens (llama.h).
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACE = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = _WORD + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACE
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_WORD}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORD}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACE
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACE
)
# llama.cpp's names for ways to cut text into words (src/llama-vocab.cpp) → the expression; None is
# the library's own, GPT-2's. Digits stand alone in SmolLM2's.
CUTS: Mapping[str, str | None] = {
    "gpt-2": None,
    "phi-2": None,
    "smollm": None,
    "dbrx": _CL100K,  # Phi-4
    "llama-bpe": _CL100K,
    "qwen2": _CL100K.replace("{1,3}", ""),
    "gpt-4o": _O200K,  # Phi-4-mini
    "tekken": _TEKKEN,  # Ministral
}
WHOLE_WORDS = ("llama-bpe",)  # a word that is a token needs no merges
_NFC = ("qwen2",)


def check(header: Header) -> str:
    """ "sentencepiece" or "gpt2", the kind of tokenizer in the file.

    Raises:
        SourceError: it has none, or one that is not read.
    """
    model = header.settings.get("tokenizer.ggml.model")
    if model == "llama":
        _list(header, "scores", float)
        kind = "sentencepiece"
    elif model == "gpt2":
        cut = header.settings.get("tokenizer.ggml.pre")
        if cut not in CUTS:
            raise SourceError(
                f"`{header.path}` cuts text in the way `{json_files.shown(str(cut))}`; those that "
                f"are read are {', '.join(CUTS)}"
            )
        _list(header, "merges", str)
        kind = "gpt2"
    else:
        shown = json_files.shown(str(model))
        raise SourceError(
            f"`{header.path}` has the tokenizer `{shown}`; `llama` and `gpt2` are read"
        )
    tokens, kinds = _list(header, "tokens", str), _list(header, "token_type", int)
    rows = header.tensors["token_embd.weight"].shape[0]
    if len(kinds) != len(tokens) or not 0 < len(tokens) <= rows:
        raise SourceError(
            f"`{header.path}` has {len(tokens)} tokens of {len(kinds)} kinds, and a table of "
            f"{rows}: they are of different models"
        )
    return kind


def normal_form(header: Header) -> str:
    """Of Unicode, the form into which the tokenizer brings texts first; "" is none."""
    return "NFC" if header.settings.get("tokenizer.ggml.pre") in _NFC else ""


def _list(header: Header, name: str, kind: type) -> list[Json]:
    values = header.settings.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise SourceError(
            f"`{header.path}` has no `tokenizer.ggml.{name}`, which its tokenizer needs"
        )
    return values


def files(header: Header) -> dict[str, Json | bytes]:
    """Names of files → their content, JSON or bytes.

    Raises:
        SourceError: as ``check``.
    """
    kind = check(header)
    tokens, kinds = _list(header, "tokens", str), _list(header, "token_type", int)
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": _strips(header, token),
            "normalized": False,
            "special": kinds[number] != _USER,
        }
        for number, token in enumerate(tokens)
        if kinds[number] in (_UNKNOWN, _CONTROL, _USER)
    ]
    whole: dict[str, Json] = {"version": "1.0", "truncation": None, "padding": None}
    whole["added_tokens"] = added
    parts = _sentencepiece(header) if kind == "sentencepiece" else _bytewise(header, added)
    whole |= parts
    found: dict[str, Json | bytes] = {
        "tokenizer.json": whole,
        "tokenizer_config.json": _settings(header, kind, added),
    }
    if kind == "sentencepiece":
        found["tokenizer.model"] = _model(header)
    return found


def _strips(header: Header, token: str) -> bool:
    """Whether white space after the special ``token`` is left out, as Phi-3's tokenizer does. A
    GGUF does not say it; llama.cpp goes by the model's name (``llama-vocab.cpp``)."""
    name = str(header.settings.get("general.name", ""))
    is_phi3 = re.search("phi[- ]?3", name, re.IGNORECASE) is not None
    return is_phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")


def _prefixed(header: Header) -> bool:
    return header.settings.get("tokenizer.ggml.add_space_prefix", True) is not False


def _sentencepiece(header: Header) -> dict[str, Json]:
    tokens, scores = _list(header, "tokens", str), _list(header, "scores", float)
    kinds = _list(header, "token_type", int)
    vocabulary = {token: number for number, token in enumerate(tokens) if kinds[number] != _UNUSED}
    normal = {t: n for t, n in vocabulary.items() if kinds[n] in (_NORMAL, _USER)}
    unknown = next((tokens[n] for n, kind in enumerate(kinds) if kind == _UNKNOWN), None)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prepend = [{"type": "Prepend", "prepend": "\u2581"}] if _prefixed(header) else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepend else []
    decoders = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *strip,
    ]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": _begun(header),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": _BYTE in kinds,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges(normal, scores),
        },
    }


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[list[str]]:
    """Pairs that SentencePiece joins, the best piece first: each piece of two others."""
    found = [
        (-scores[number], vocabulary[token[:at]], vocabulary[token[at:]], token[:at], token[at:])
        for token, number in vocabulary.items()
        for at in range(1, len(token))
        if token[:at] in vocabulary and token[at:] in vocabulary
    ]
    return [[left, right] for *_, left, right in sorted(found)]


def _bytewise(header: Header, added: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    cut = str(header.settings["tokenizer.ggml.pre"])
    tokens, kinds = _list(header, "tokens", str), _list(header, "token_type", int)
    special = {str(token["content"]) for token in added}
    pairs = [pair.split(" ", 1) for pair in _list(header, "merges", str)]
    if any(len(pair) != 2 for pair in pairs):
        raise SourceError(f"`{header.path}` has merges that are no pairs")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    expression = CUTS[cut]
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    first: list[Json] = [{"type": "Digits", "individual_digits": True}] if cut == "smollm" else []
    if expression:
        first = [split | {"pattern": {"Regex": expression}}]
    return {
        "normalizer": {"type": normal_form(header)} if normal_form(header) else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*first, level | {"use_regex": expression is None}],
        },
        "post_processor": _begun(header),
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut in WHOLE_WORDS,
            "vocab": {
                token: number
                for number, token in enumerate(tokens)
                if kinds[number] != _UNUSED and token not in special
            },
            "merges": pairs,
        },
    }


def _begun(header: Header) -> Json:
    """What puts the token that begins a text before it, where the file asks for that."""
    token = _named(header, "bos")
    if token is None or header.settings.get("tokenizer.ggml.add_bos_token") is not True:
        return None
    number = header.settings["tokenizer.ggml.bos_token_id"]
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            begin,
            {"Sequence": {"id": "A", "type_id": 0}},
            begin,
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _named(header: Header, name: str) -> str | None:
    number = header.settings.get(f"tokenizer.ggml.{name}_token_id")
    tokens = _list(header, "tokens", str)
    return tokens[number] if type(number) is int and 0 <= number < len(tokens) else None


def _settings(header: Header, kind: str, added: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    begins = header.settings.get("tokenizer.ggml.add_bos_token") is True
    spm = kind == "sentencepiece"
    settings: dict[str, Json] = {
        "add_bos_token": begins,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in added
        },
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "LlamaTokenizer" if spm else "PreTrainedTokenizerFast",
    }
    if spm:
        settings |= {"legacy": False, "add_prefix_space": _prefixed(header)}
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    settings |= {
        f"{name}_token": token for key, name in names.items() if (token := _named(header, key))
    }
    template = header.settings.get("tokenizer.chat_template")
    return settings | ({"chat_template": template} if isinstance(template, str) else {})


def _model(header: Header) -> bytes:
    names = {"unk": "unknown", "bos": "bos", "eos": "eos", "pad": "padding"}
    ids = {
        name: header.settings.get(f"tokenizer.ggml.{key}_token_id", -1)
        for name, key in names.items()
    }
    tokens, scores = _list(header, "tokens", str), _list(header, "scores", float)
    pieces = list(zip(tokens, scores, _list(header, "token_type", int), strict=True))
    return sentencepiece_files.model(pieces, ids, prefix=_prefixed(header))
