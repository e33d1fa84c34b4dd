"""Whether a model fits into a device's memory: weights, cache and runtime, with the arithmetic
shown.

A device that is refused could not work; one that is not refused may still be tight, since what a
graph needs while it computes depends on its runtime.
"""

from __future__ import annotations

from dataclasses import dataclass

from phipipe import words
from phipipe.models.checkpoint import Checkpoint
from phipipe.steps import Json
from phipipe.words import GIB

# tokens that a recipe asks for if it says nothing, or the model's context where that is shorter
CONTEXT = 4096
# What a runtime takes besides weights and cache: its code, activations, the logits of a prompt. On
# the embedded model (3 to 6 MiB of weights) whole processes peaked at 74 MiB (llama.cpp) to 124 MiB
# (OpenVINO).
RUNTIME_BYTES = 2**27


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a build takes on its device while it answers."""

    weight_bytes: int  # of the artifact, estimated
    context: int  # positions in the cache: prompt and answer together
    cache_bytes: int
    cache_words: str  # the product that gives ``cache_bytes``
    memory_gib: float | None  # what the device has for a model; None if it varies

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + RUNTIME_BYTES

    @property
    def fits(self) -> bool:
        return self.memory_gib is None or self.total_bytes <= self.memory_gib * GIB

    @property
    def longest(self) -> int:
        """The longest context that fits beside the weights; 0 if none does."""
        if self.memory_gib is None:
            return self.context
        left = self.memory_gib * GIB - self.weight_bytes - RUNTIME_BYTES
        return max(0, int(left / (self.cache_bytes / self.context)))

    def words(self) -> str:
        """The sum, for people."""
        weights, cache = words.size(self.weight_bytes, 2), words.size(self.cache_bytes, 2)
        total, runtime = words.size(self.total_bytes, 2), words.size(RUNTIME_BYTES, 2)
        return (
            f"{total} = weights {weights} + cache {cache} ({self.cache_words}) + runtime {runtime}"
        )

    def as_json(self) -> dict[str, Json]:
        """The same for machines."""
        names = ("weight_bytes", "context", "cache_bytes", "total_bytes", "memory_gib", "fits")
        return {name: getattr(self, name) for name in names}


def reckon(
    checkpoint: Checkpoint,
    weight_bytes: int,
    context: int,
    value_bytes: int,
    memory_gib: float | None = None,
) -> Fit:
    """``context`` positions of keys and values in every layer, ``value_bytes`` bytes each, beside
    the weights."""
    layers, heads, size = checkpoint.layers, checkpoint.kv_heads, checkpoint.head_size
    return Fit(
        weight_bytes=weight_bytes,
        context=context,
        cache_bytes=2 * layers * heads * size * context * value_bytes,
        cache_words=f"{context:,} tokens × {layers} layers × 2 × {heads} heads × {size} × "
        f"{value_bytes} B",
        memory_gib=memory_gib,
    )
