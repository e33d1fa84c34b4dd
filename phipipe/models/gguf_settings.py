"""Which settings a GGUF may have, and of what kind: each is read, is known to change nothing, or
is refused by its name.

A key that nobody reads would leave a part of the arithmetic out without a word. The keys are those
of ggml's specification of GGUF and of llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models.gguf_files import Header
from phipipe.steps import Json

# Read elsewhere (``gguf_configs``), of an architecture.
_READ = (
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "expert_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "attention.sliding_window"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.attn_factor"),
)


def _is(*values: Json) -> Callable[[Json], bool]:
    return lambda value: any(type(value) is type(v) and value == v for v in values)


def _is_number(value: float) -> Callable[[Json], bool]:
    return lambda other: type(other) in (int, float) and abs(other - value) < 1e-6


def _any(value: Json) -> bool:
    return True


# Not read, of an architecture: the value that changes nothing.
_PLAIN: Mapping[str, Callable[[Json], bool]] = {
    "attention.causal": _is(True),
    "attention.layer_norm_epsilon": _any,  # of layer norms, which these architectures do not have
    "expert_used_count": _is_number(0),
    "nextn_predict_layers": _is_number(0),
    "pooling_type": _is_number(0),
    "rope.scale_linear": _is_number(1),
    "rope.scaling.finetuned": _any,
    "rope.scaling.yarn_attn_factor": _is_number(1),
    "rope.scaling.yarn_beta_fast": _is_number(32),
    "rope.scaling.yarn_beta_slow": _is_number(1),
    "rope.scaling.yarn_ext_factor": _is_number(1),
    "tensor_data_layout": _any,  # of the file that was converted
    "use_parallel_residual": _is(False),
}
_FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix")
_IDS = ("bos", "eos", "eot", "eom", "padding", "unknown")


def check(header: Header) -> None:
    """Refuse settings that are not read and say something, and those of another kind than theirs.

    Raises:
        SourceError: names the setting.
    """
    prefix = f"{header.settings.get('general.architecture')}."
    for key, value in header.settings.items():
        if key.startswith(prefix):
            _check_part(header, key, key.removeprefix(prefix), value)
    for name in _FLAGS:
        _check_kind(header, f"tokenizer.ggml.{name}", (bool,), "neither true nor false")
    for name in _IDS:
        _check_kind(header, f"tokenizer.ggml.{name}_token_id", (int,), "no token's number")
    _check_kind(header, "tokenizer.chat_template", (str,), "no text")
    _check_kind(header, "tokenizer.ggml.pre", (str,), "no text")
    if header.settings.get("tokenizer.ggml.add_eos_token"):
        raise _odd(header, "tokenizer.ggml.add_eos_token", "ends every text with a token")


def _check_part(header: Header, key: str, name: str, value: Json) -> None:
    if name == "vocab_size":
        table = header.tensors.get("token_embd.weight")
        if table is not None and value != table.shape[0]:
            raise _odd(header, key, f"is not the {table.shape[0]} rows of its table of tokens")
    elif name in _PLAIN:
        if not _PLAIN[name](value):
            shown = json_files.shown(str(value))[:60]
            raise _odd(header, key, f"is {shown}: the architecture has no such part here")
    elif name not in _READ:
        raise _odd(header, key, "is of a part that the architecture does not have here")


def _check_kind(header: Header, key: str, kinds: tuple[type, ...], what: str) -> None:
    if key in header.settings and type(header.settings[key]) not in kinds:
        raise _odd(header, key, f"is {what}")


def _odd(header: Header, key: str, what: str) -> SourceError:
    return SourceError(
        f"`{header.path}` is not read: its setting `{json_files.shown(key)}` {what}",
        hint="give the folder of the original, with its safetensors",
    )


class Said:
    """What a file says of its architecture, a number where a number is asked for."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self._prefix = str(header.settings["general.architecture"])

    def find(self, key: str) -> Json:
        """The setting ``key`` of the architecture; None where there is none."""
        return self.header.settings.get(f"{self._prefix}.{key}")

    def number(self, key: str, default: float | None = None) -> float:
        """As ``find``.

        Raises:
            SourceError: it is no number; or is missing, and has no ``default``.
        """
        value = self.find(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            name = f"{self._prefix}.{key}"
            what = "does not say" if value is None else "has no number as"
            raise SourceError(f"`{self.header.path}` {what} `{name}`")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """As ``number``, for whole ones."""
        value = self.number(key, default)
        if int(value) != value:
            raise SourceError(f"`{self.header.path}` has no whole number as `{key}`")
        return int(value)


def decimal(value: float) -> float:
    """The shortest decimal that a 32-bit float stands for: 9.999999747378752e-06 is 1e-05."""
    return float(f"{value:.7g}")
