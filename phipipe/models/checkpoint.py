"""The shape of a checkpoint: all that rules, plans and estimates know of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.models import rotary
from phipipe.models.remarks import Remark
from phipipe.steps import Json

LARGE_PARAMETERS = 10**9


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's shape. Lengths are in tokens; ``parameters`` and ``weight_bytes`` come from
    the headers.

    ``rope_scaling`` is LongRoPE in the one spelling that every converter reads ("type": "longrope",
    "short_factor", "long_factor" …), whatever the config's; None without LongRoPE. ``tokenizer``
    is the kind of its vocabulary: "sentencepiece" (pieces, with bytes for what none covers), "gpt2"
    (byte-level BPE) or "other".
    """

    folder: Path
    config: Mapping[str, Json]
    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context_length: int
    original_context_length: int
    sliding_window: int | None
    tied: bool
    longrope: bool
    rope_scaling: Mapping[str, Json] | None
    rope_theta: float
    partial_rotary_factor: float
    experts: int  # 0 in a dense model
    active_experts: int
    parts: tuple[str, ...]  # besides text: "vision", "audio"
    tokenizer: str
    resaved: bool  # transformers 5's own layout, which other converters misread
    parameters: int
    weight_bytes: int
    quantized: str | None = None  # the format that its weights are widened from
    cut: bool = False  # its first layers alone, for a proof
    like: tuple[str, ...] = ()  # of an architecture that is not known: known ones that come closest
    remarks: tuple[Remark, ...] = ()
    cuts_digits: bool = False  # the tokenizer, before it cuts text into words
    keeps_marks: bool = False  # the tokenizer, in words: characters that combine with letters
    normal_form: str = ""  # of Unicode, into which the tokenizer brings texts first: "NFC" …

    @property
    def large(self) -> bool:
        """Whether an unquantized copy is too much to make and score for its own sake."""
        return self.parameters > LARGE_PARAMETERS and not self.cut

    @property
    def dtype(self) -> str:
        """The dtype of its floats, as its config names it."""
        return str(self.config.get("torch_dtype") or self.config.get("dtype") or "float32")

    @property
    def active_parameters(self) -> int:
        """Parameters that a token passes through: of the experts, only those that are chosen for
        it."""
        idle = max(self.experts - self.active_experts, 0)
        return self.parameters - idle * self.layers * 3 * self.hidden_size * self.intermediate_size

    @property
    def input_widths(self) -> dict[str, int]:
        """Input widths of the decoder layers' linears, by what makes them."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "heads times head size": self.heads * self.head_size,
        }

    def is_divided_by(self, group_size: int) -> bool:
        """Whether groups of so many weights divide the rows of every linear."""
        return not any(width % group_size for width in self.input_widths.values())

    @property
    def scaling(self) -> str:
        """The kind of rotary scaling that the config asks for (``rotary.kind``)."""
        return rotary.kind(self.config)

    @property
    def rotary_features(self) -> tuple[str, ...]:
        """What a runtime must have to compute the positions (``rotary.features``)."""
        return rotary.features(self.config)

    @property
    def besides(self) -> str:
        """``parts`` for people."""
        return " and ".join(f"{part} parts" for part in self.parts) or "parts"

    @property
    def cuts(self) -> bool:
        """Whether the sliding window is shorter than the context, as no LongRoPE model's is."""
        return self.sliding_window is not None and 0 < self.sliding_window < self.context_length
