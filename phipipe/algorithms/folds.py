"""Where a layer's numbers can be scaled without changing what the layer computes (without torch).

Between a ``maker`` and its ``readers`` nothing but a product lies: dividing the rows that make a
number by some factor, and multiplying the columns that read it by the same, changes nothing. So it
is with a norm and the linears behind it; with values and the output projection, since attention
adds values up; and with the linear half of a gated MLP. A plain MLP has its activation between
(phi's ``fc1`` and ``fc2``), and norms of queries and keys undo no scale of their own inputs'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.models.checkpoint import Checkpoint

    Exponents = npt.NDArray[np.int8]
    Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Numbers that ``maker`` makes and ``readers`` read, by their names in a layer.

    Rows ``first`` to ``first + count`` of the maker (of a norm: of its vector) make them. Each
    stretch of ``head`` numbers is read ``repeats`` times in a row, as grouped queries read values.
    ``plus`` is what the maker adds to its stored weight: Gemma's norms multiply by 1 + weight.
    """

    maker: str
    readers: tuple[str, ...]
    count: int
    first: int = 0
    head: int = 1
    repeats: int = 1
    plus: float = 0.0

    def repeated(self, made: Exponents) -> Exponents:
        """What the readers get of ``made`` [count]: [count × repeats]."""
        return made.reshape(-1, 1, self.head).repeat(self.repeats, axis=1).reshape(-1)

    def shared(self, read: Floats) -> Floats:
        """The mean of ``read`` [count × repeats] over all that read the same number: [count]."""
        mean: Floats = read.reshape(-1, self.repeats, self.head).mean(1)
        return mean.reshape(-1)


def of(checkpoint: Checkpoint) -> tuple[Fold, ...]:
    """The folds of every layer of ``checkpoint``.

    Raises:
        KeyError: nobody has worked out which its type of model has (``TYPES``).
    """
    return tuple(TYPES[checkpoint.model_type](checkpoint))


def _values(c: Checkpoint, maker: str, first: int, reader: str) -> Fold:
    return Fold(
        maker=f"self_attn.{maker}",
        first=first,
        count=c.kv_heads * c.head_size,
        head=c.head_size,
        repeats=c.heads // c.kv_heads,
        readers=(f"self_attn.{reader}",),
    )


def _norm(c: Checkpoint, maker: str, *readers: str, plus: float = 0.0) -> Fold:
    return Fold(maker=maker, count=c.hidden_size, readers=readers, plus=plus)


_QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
_GATED = ("mlp.gate_proj", "mlp.up_proj")


def _phi(c: Checkpoint) -> Iterator[Fold]:
    yield _norm(c, "input_layernorm", *_QKV, "mlp.fc1")  # attention and MLP side by side
    yield _values(c, "v_proj", 0, "dense")


def _phi3(c: Checkpoint) -> Iterator[Fold]:
    inner = c.intermediate_size
    yield _norm(c, "input_layernorm", "self_attn.qkv_proj")
    yield _values(c, "qkv_proj", (c.heads + c.kv_heads) * c.head_size, "o_proj")
    yield _norm(c, "post_attention_layernorm", "mlp.gate_up_proj")
    yield Fold(maker="mlp.gate_up_proj", first=inner, count=inner, readers=("mlp.down_proj",))


def _gated(
    c: Checkpoint, before: str = "post_attention_layernorm", plus: float = 0.0
) -> Iterator[Fold]:
    yield _norm(c, "input_layernorm", *_QKV, plus=plus)
    yield _values(c, "v_proj", 0, "o_proj")
    yield _norm(c, before, *_GATED, plus=plus)
    yield Fold(maker="mlp.up_proj", count=c.intermediate_size, readers=("mlp.down_proj",))


def _gemma3(c: Checkpoint) -> Iterator[Fold]:
    yield from _gated(c, "pre_feedforward_layernorm", plus=1.0)


TYPES: Mapping[str, Callable[[Checkpoint], Iterator[Fold]]] = {
    "phi": _phi,
    "phi3": _phi3,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), _gated),
    "gemma3_text": _gemma3,
}
"""Types of model whose folds are known. A mixture's experts see too few calibration tokens each."""
