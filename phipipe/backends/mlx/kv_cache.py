"""Keys and values in few bits, as mlx-lm's ``kv_bits`` keeps them, from the first token on."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

from phipipe.backends.mlx import cache_group
from phipipe.errors import StepFailed


class RoundedCache(KVCache):  # type: ignore[misc]
    """Rounds as ``QuantizedKVCache`` does, and hands out what it holds.

    Attention then takes MLX's usual products. Those of quantized keys sum in 16 bits on CPUs, which
    no Mac does.
    """

    def __init__(self, group_size: int, bits: int) -> None:
        super().__init__()
        self._how = {"group_size": group_size, "bits": bits}

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """All keys and values so far, [1, heads, positions, head size]; ``keys`` and ``values`` are
        the new ones."""
        rounded = (mx.dequantize(*mx.quantize(x, **self._how), **self._how) for x in (keys, values))
        both: tuple[mx.array, mx.array] = super().update_and_fetch(*rounded)
        return both


def quantized_cache(model: nn.Module, bits: int) -> list[KVCache | QuantizedKVCache]:
    """An empty cache for each layer of ``model``.

    Raises:
        StepFailed: mlx-lm cannot quantize such a model's cache.
    """
    usual, args = make_prompt_cache(model), model.args
    head = getattr(args, "head_dim", None) or args.hidden_size // args.num_attention_heads
    group = cache_group(head)
    if group is None or any(type(one) is not KVCache for one in usual):
        raise StepFailed(
            f"mlx-lm cannot quantize this model's cache: heads of {head} values, or layers that "
            f"keep a part of the context"
        )
    kind = RoundedCache if is_on_cpu() else QuantizedKVCache
    return [kind(group_size=group, bits=bits) for _ in usual]


def is_on_cpu() -> bool:
    """Whether MLX computes without Apple's GPU."""
    return bool(mx.default_device() == mx.Device(mx.cpu))
