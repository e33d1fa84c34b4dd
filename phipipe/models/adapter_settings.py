"""What ``adapter_config.json`` says of a LoRA adapter, in PEFT's spelling.

The file is a stranger's JSON: each key is of its own kind and bounded, and whatever would change
the arithmetic in a way that is not done here is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models.weight_files import ADAPTER
from phipipe.steps import Json

MAX_RANK, MAX_ALPHA, MAX_NAMES = 2**15, 1e6, 10_000
_HINT = "save the adapter again with peft (`save_pretrained`)"
_MERGE = "merge it with peft (`merge_and_unload`), save the whole model, and give its folder"
# Kinds of adapters that are no sum of two small matrices.
_KINDS: Mapping[str, str] = {
    "IA3": "IA³",
    "ADALORA": "AdaLoRA",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "OFT": "OFT",
    "BOFT": "BOFT",
    "VERA": "VeRA",
    "FOURIERFT": "FourierFT",
    "PREFIX_TUNING": "prefix tuning",
    "PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "P-tuning",
    "ADAPTION_PROMPT": "an adaption prompt",
    "TRAINABLE_TOKENS": "trainable tokens",
    "XLORA": "X-LoRA",
    "HRA": "HRA",
    "VBLORA": "VB-LoRA",
    "RANDLORA": "RandLoRA",
    "MISS": "MiSS",
    "BONE": "Bone",
    "SHIRA": "SHiRA",
    "C3A": "C3A",
}
# Keys that change what is added, or where; none of them may say anything.
_OTHER_ARITHMETIC = (
    *("layer_replication", "alora_invocation_tokens", "use_qalora", "lora_bias"),
    *("target_parameters", "trainable_token_indices", "use_bdlora", "arrow_config"),
    *("kasa_config", "monteclora_config"),
)
# Starts of the adapter that change the base as well: the adapter alone fits that changed base.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# PEFT matches keys of patterns as regular expressions. Those that are read are words with dots,
# digits and up to two wildcards: a stranger's expression must not keep us busy.
_PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.|\\d|\.\*|\\d\+|\(\?:|[()|])+\$?")
_REPEATED_GROUP = re.compile(r"\)[*+?{]")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """An adapter's settings. ``base`` is the model that it says it was trained on, None where it
    does not; ``targets`` the names of the modules, None where they are given as an expression."""

    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    base: str | None = None
    targets: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None  # None: all
    saved: tuple[str, ...] = ()  # modules that were trained as a whole
    tied: bool = False  # embedding and head stay tied, whatever is saved of them
    ranks: Mapping[str, float] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """The rank of the change to ``module``, its name in the model."""
        return int(_matched(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the product of the two matrices is multiplied by: alpha / r (Hu et al. 2021,
        arXiv:2106.09685), or alpha / √r (Kalajdzievski 2023, arXiv:2312.03732)."""
        rank, alpha = self.rank_of(module), _matched(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read(folder: Path) -> AdapterSettings:
    """The settings of the adapter in ``folder``.

    Raises:
        SourceError: the file is missing or malformed, or the adapter is of a kind that is not
            merged.
    """
    path = folder / ADAPTER
    content = json_files.read_object(path, 2**20)
    _refuse_kind(path, content)
    _refuse_arithmetic(path, content)
    rank = _whole(path, content, "r", 8)
    if not 1 <= rank <= MAX_RANK:
        raise SourceError(
            f"`{path}` has the rank {rank} (`r`): such an adapter changes nothing that can be "
            f"merged",
            hint="give the adapter that was trained",
        )
    targets = content.get("target_modules")
    return AdapterSettings(
        rank=rank,
        alpha=_number(path, "lora_alpha", content.get("lora_alpha", 8)),
        rslora=_flag(path, content, "use_rslora"),
        dora=_flag(path, content, "use_dora"),
        base=_base(content.get("base_model_name_or_path")),
        targets=None if isinstance(targets, str) else _names(path, content, "target_modules"),
        layers=_layers(path, content.get("layers_to_transform")),
        saved=_names(path, content, "modules_to_save") or (),
        tied=_flag(path, content, "ensure_weight_tying"),
        ranks=_patterns(path, content, "rank_pattern"),
        alphas=_patterns(path, content, "alpha_pattern"),
    )


def base_of(folder: Path) -> str | None:
    """The model that the adapter in ``folder`` says it was trained on, if it is there and says
    so.

    Raises:
        SourceError: the file is no JSON object.
    """
    path = folder / ADAPTER
    content = json_files.read_object(path, 2**20) if path.is_file() else {}
    return _base(content.get("base_model_name_or_path"))


def _base(value: Json) -> str | None:
    return value if isinstance(value, str) and value and len(value) < 1000 else None


def in_layers(settings: AdapterSettings, module: str) -> bool:
    """Whether ``module`` is of a layer that the settings name; where they name some, what is of no
    layer is of none of them."""
    if settings.layers is None:
        return True
    layer = re.match(r".*\.[^.]*\.(\d{1,9})\.", module)
    return layer is not None and int(layer[1]) in settings.layers


def is_target(settings: AdapterSettings, module: str) -> bool:
    """Whether ``module`` ends with one of the names that the settings have."""
    if settings.targets is None:
        return True
    return any(module == name or module.endswith(f".{name}") for name in settings.targets)


def _refuse_kind(path: Path, content: Mapping[str, Json]) -> None:
    kind = content.get("peft_type")
    if kind is None and ("fine_tune_type" in content or "lora_parameters" in content):
        raise SourceError(
            f"`{path}` is of an adapter in MLX's own layout; PEFT's is read",
            hint="fuse it with mlx-lm (`mlx_lm.fuse --de-quantize`), and give that folder as "
            "`path`",
        )
    if kind != "LORA":
        name = _KINDS.get(kind, json_files.shown(kind)) if isinstance(kind, str) else "no known"
        raise SourceError(
            f"`{path}` is of an adapter of another kind than LoRA: {name} (`peft_type`)",
            hint=_MERGE,
        )


def _refuse_arithmetic(path: Path, content: Mapping[str, Json]) -> None:
    for key in _OTHER_ARITHMETIC:
        if content.get(key):
            raise SourceError(
                f"`{path}` sets `{key}`, which plain LoRA does not have and phipipe does not merge",
                hint=_MERGE,
            )
    start = content.get("init_lora_weights")
    if isinstance(start, str) and start.casefold().startswith(_CHANGED_BASE):
        raise SourceError(
            f"`{path}` starts from `{json_files.shown(start)}` (`init_lora_weights`), which "
            f"changes the base model, too: added to the original, the adapter gives another model",
            hint="save it as plain LoRA (peft's `path_initial_model_for_weight_conversion`); or "
            + _MERGE,
        )


def _whole(path: Path, content: Mapping[str, Json], key: str, usual: int) -> int:
    value = content.get(key, usual)
    if type(value) is not int:
        raise _malformed(path, key, "no whole number")
    return value


def _number(path: Path, key: str, value: Json) -> float:
    if type(value) not in (int, float) or not 0 < value <= MAX_ALPHA:
        raise _malformed(path, key, f"no number above 0 and at most {MAX_ALPHA:g}")
    return float(value)


def _flag(path: Path, content: Mapping[str, Json], key: str) -> bool:
    value = content.get(key)
    if value is not None and type(value) is not bool:
        raise _malformed(path, key, "neither true nor false")
    return bool(value)


def _names(path: Path, content: Mapping[str, Json], key: str) -> tuple[str, ...] | None:
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_NAMES:
        raise _malformed(path, key, "no list of names")
    if not all(isinstance(name, str) and 0 < len(name) < 300 for name in value):
        raise _malformed(path, key, "no list of names")
    return tuple(value)


def _layers(path: Path, value: Json) -> tuple[int, ...] | None:
    numbers = [value] if type(value) is int else value
    if numbers is None or numbers == []:
        return None
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise _malformed(path, "layers_to_transform", "no list of layers' numbers")
    return tuple(numbers)


def _patterns(path: Path, content: Mapping[str, Json], key: str) -> dict[str, float]:
    table = content.get(key) or {}
    if not isinstance(table, dict) or len(table) > MAX_NAMES:
        raise _malformed(path, key, "no table of numbers")
    for pattern, value in table.items():
        _number(path, key, value)
        if not is_simple(pattern):
            raise SourceError(
                f"`{path}` has the expression `{json_files.shown(pattern)}` in `{key}`; names "
                f"with up to two wildcards are read",
                hint="write the modules' names there, one by one",
            )
        if key == "rank_pattern" and (type(value) is not int or value > MAX_RANK):
            raise _malformed(path, key, "no table of ranks")
    return {pattern: float(value) for pattern, value in table.items()}


def is_simple(pattern: str) -> bool:
    """Whether ``pattern`` is an expression that is matched in little time, whatever the name."""
    if len(pattern) > 300 or not _PATTERN.fullmatch(pattern) or _REPEATED_GROUP.search(pattern):
        return False
    if pattern.count("*") + pattern.count("+") > 2 or pattern.count("|") > 20:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _matched(table: Mapping[str, float], module: str, usual: float) -> float:
    """The value of the first key that ``module`` ends with, as PEFT looks for it."""
    for pattern, value in table.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return usual


def _malformed(path: Path, key: str, what: str) -> SourceError:
    return SourceError(f"`{path}` is malformed: `{key}` is {what}", hint=_HINT)


def short_names(names: Sequence[str]) -> str:
    """Up to three ``names`` for a message, and how many more there are."""
    shown = ", ".join(f"`{json_files.shown(name)}`" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
