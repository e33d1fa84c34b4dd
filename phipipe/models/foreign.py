"""Checkpoints that no build can start from, whatever the backend: quantized ones, and models of
another purpose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import family
from phipipe.steps import Json

_NAMES = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "mxfp4": "MXFP4",
    "torchao": "torchao",
    "auto-round": "AutoRound",
}
# Heads that give something else than the next token; and none at all.
_OTHER = re.compile(
    r".*For(SequenceClassification|TokenClassification|QuestionAnswering|MaskedLM|MultipleChoice|"
    r"Embedding\w*|ImageClassification|RewardModel\w*)|.*(?<!LMHead)Model"
)


def refuse(path: Path, config: Mapping[str, Json]) -> None:
    """Refuse what ``config``, the content of ``path``, says is quantized or no model that writes.

    Raises:
        SourceError: names the format or the class.
    """
    named = config.get("architectures")
    for name in named if isinstance(named, list) else ():
        if isinstance(name, str) and _OTHER.fullmatch(name):
            raise SourceError(
                f"`{path}` is of no model that writes text: {json_files.shown(name)} has "
                f"another head, or none",
                hint="give a checkpoint of a causal language model (`…ForCausalLM`)",
            )
    if not config.get(
        "quantization_config", True
    ):  # converters and transformers take the key for a format, and fail
        raise SourceError(
            f"`{path}` has `quantization_config` with nothing in it", hint="remove the key"
        )
    key = next((key for key in ("quantization_config", "quantization") if config.get(key)), None)
    if key:
        settings = config[key]
        raise SourceError(
            f"`{path}` is of a model that is quantized already (`{key}`: {_format(settings)}); "
            "quantizing it again would lose more than the figures could tell",
            hint=f"{_original(config)}; if these are merged weights in 16 bits, remove the key",
        )


def _format(settings: Mapping[str, Json]) -> str:
    kind = settings.get("quant_method")
    if isinstance(kind, str):
        name = _NAMES.get(kind, json_files.shown(kind))
    else:
        name = "MLX" if "group_size" in settings else "in an unnamed format"
    bits = settings.get("bits") or (
        4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None
    )
    return f"{name}, {bits} bits" if isinstance(bits, int) and 0 < bits < 65 else name


def _original(config: Mapping[str, Json]) -> str:
    """Where the weights in 16 bits are, as far as the config tells."""
    try:
        member = family.of(config)
    except (TypeError, IndexError):
        member = None
    if member:
        return (
            f"start from the original in 16 bits, such as "
            f"{' or '.join(f'`{repo}`' for repo in member.repos[:2])}"
        )
    return "start from the original in 16 bits, which the model's page names"
