"""Settings by which a config file makes some tool of the field load code, or a file from elsewhere
(promise S2)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.steps import Json

# transformers (auto_map, and CVE-2026-4372's kernel and attention fields), mlx-lm (model_file),
# ONNX Runtime GenAI (custom_ops_library). None of them has a value that a model needs.
CODE_KEYS = frozenset(
    {
        "custom_ops_library",
        "custom_pipelines",
        "custom_generate",
        "model_file",
        "trust_remote_code",
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "attn_implementation_kernel",
        "kernel_config",
        "kernel_mapping",
        "use_kernels",
        "hub_kernels",
        "remote_code",
        "code_revision",
        "plugin_library",
        "quantizer_class",
        "quantizer_cls",
    }
)
# transformers takes any other name for a kernel on the hub, which is code:
# ``owner/repository[@revision][:function]``.
_ATTENTION = r"(paged\|)?(eager|sdpa|flex_attention|flash_attention_[2-4])"
# the name of a class or module of the tool's own, not a path to another one
_WORD = r"[A-Za-z_][A-Za-z0-9_-]*"
WORDS: Mapping[str, re.Pattern[str]] = {
    **dict.fromkeys(("_attn_implementation", "attn_implementation"), re.compile(_ATTENTION)),
    **dict.fromkeys(
        (
            "_experts_implementation",
            "experts_implementation",
            "cache_implementation",
            "chat_template_type",
            "feature_extractor_class",
            "feature_extractor_type",
            "image_processor_class",
            "image_processor_type",
            "model_type",
            "processor_class",
            "quant_method",
            "slow_image_processor_class",
            "tokenizer_class",
            "tool_parser_type",
            "video_processor_type",
        ),
        re.compile(_WORD),
    ),
}
# Files that transformers opens in place of those beside the config.
FILES = frozenset(
    {
        "configuration_files",
        "fast_tokenizer_files",
        "gguf_file",
        "merges_file",
        "qformer_file",
        "source_spm",
        "spm_file",
        "target_spm",
        "tekken_file",
        "tokenizer_file",
        "transformers_weights",
        "vocab_file",
    }
)


def hooks(settings: Mapping[str, Json]) -> Iterator[str]:
    """What in ``settings`` would make some tool run code or read elsewhere, each a phrase to follow
    the file's name."""
    for where, key, value in json_files.walk(settings):
        if value is None or value is False:
            continue
        if (key in CODE_KEYS and value) or (
            key in WORDS and not all(_is_word(key, text) for text in _texts(value))
        ):
            yield f"asks to run code (`{json_files.shown(where)}`)"
        elif key in FILES and not all(_is_plain(text) for text in _texts(value)):
            yield f"names a file that lies elsewhere (`{json_files.shown(where)}`)"


def refuse(path: Path, settings: Mapping[str, Json]) -> None:
    """Refuse ``settings``, the content of ``path``, if any key in it asks some tool to run code or
    to read elsewhere.

    Raises:
        SourceError: names the key.
    """
    for phrase in hooks(settings):
        raise SourceError(
            f"`{path}` {phrase}; phipipe never runs a model's code", hint="remove that key"
        )


def _texts(value: object) -> list[object]:
    """The texts in ``value``, which may be one, or lists or maps of them (a model's parts have one
    each)."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [] if value is None else [value]


def _is_word(key: str, text: object) -> bool:
    return (
        isinstance(text, str)
        and len(text) <= 100
        and (not text or bool(WORDS[key].fullmatch(text)))
    )


def _is_plain(text: object) -> bool:
    return isinstance(text, str) and not re.search(r"[\\/:]|^\.\.?$", text)
