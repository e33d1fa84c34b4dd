"""An MLX folder: logits in fp32 arithmetic or the dtype that ships, greedy text in the latter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn
from mlx.utils import tree_map
from mlx_lm import utils
from mlx_lm.generate import generate_step

from phipipe.backends.absent import absent
from phipipe.backends.choosing import Choose
from phipipe.backends.mlx.kv_cache import is_on_cpu, quantized_cache
from phipipe.models import tokenizer_files

BLAS_BYTES = 2**26  # weights beyond this are scored with numpy's products where there is no GPU


class Session:
    """``Runtime`` over a folder. One model is in memory: the one for scoring, or the one for text,
    which also scores ``as_run``, with keys and values in ``cache_bits`` if not as they are.

    Raises:
        TargetError: with the API "metal", this machine's MLX has no GPU.
    """

    def __init__(
        self,
        folder: Path,
        api: str = "cpu",
        as_run: bool = False,
        cache_bits: int | None = None,
    ) -> None:
        if api == "metal" and not mx.metal.is_available():
            raise absent("Apple GPU", "MLX")
        self._model: nn.Module | None = None  # for generation, as it is used
        self._wide: nn.Module | None = None  # for scoring
        self._ends = tokenizer_files.end_ids(utils.load_config(folder).get("eos_token_id"))
        self._folder, self._as_run, self._cache_bits = folder, as_run, cache_bits

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        model = self._as_it_is() if self._as_run else self._widened()
        cache = quantized_cache(model, self._cache_bits) if self._cache_bits else None
        return np.array(model(mx.array([list(tokens)]), cache=cache)[0].astype(mx.float32))

    def _widened(self) -> nn.Module:
        if self._wide is None:
            self._model = None
            self._wide = self._in_fp32()
        return self._wide

    def _as_it_is(self) -> nn.Module:
        if self._model is None:
            self._wide = None
            self._model, _ = utils.load_model(self._folder)
            if self._as_run and is_on_cpu():
                _compute_with_numpy(self._model)
        return self._model

    def _in_fp32(self) -> nn.Module:
        """The model again, with floating-point values (scales too) in fp32: 16-bit activations
        would be measured."""
        model, _ = utils.load_model(self._folder, lazy=True)
        model.update(tree_map(_in_fp32, model.parameters()))
        size = sum(path.stat().st_size for path in self._folder.glob("*.safetensors"))
        if size > BLAS_BYTES and is_on_cpu():
            _compute_with_numpy(model)
        return model

    def generate(
        self, prompt: Sequence[int], limit: int, choose: Choose | None = None
    ) -> Iterator[int]:
        model = self._as_it_is()
        sampler = None if choose is None else _sampler(choose)
        for token, _ in generate_step(
            mx.array(list(prompt)), model, max_tokens=limit, sampler=sampler
        ):
            yield int(token)
            if int(token) in self._ends:
                return

    def close(self) -> None:
        self._model = self._wide = None
        mx.clear_cache()


def _sampler(choose: Choose) -> Callable[[mx.array], mx.array]:
    """``choose`` as mlx-lm takes it: log-probabilities [1, vocabulary] → ids [1]."""
    return lambda row: mx.array([choose(np.array(row[0].astype(mx.float32)))])


def _in_fp32(value: mx.array) -> mx.array:
    return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value


class Blas(nn.Module):  # type: ignore[misc]
    """A linear layer whose product numpy computes, on the very values that ``layer`` stores.

    Of 16-bit inputs it sums in fp32 and rounds the result to 16 bits, as MLX's kernels for Metal do
    (mlx/backend/metal/kernels/quantized.h). Its kernels for CPUs also sum in 16 bits, which no Mac
    does: mean KL divergence of the embedded model with 8 bits is 2.3e-3 nats with them.

    mlx's products on CPUs reach 3 GFLOP/s on two cores (Linux), numpy's 60: a window of 512 tokens
    through 4 G parameters would take 20 minutes. Metal has kernels of its own, which no CPU can try
    anyway.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = layer

    def __call__(self, x: mx.array) -> mx.array:
        layer = self._layer
        weight = np.array(_dense(layer))
        product = np.array(x.astype(mx.float32)).reshape(-1, weight.shape[1]) @ weight.T
        y = mx.array(product).reshape(*x.shape[:-1], weight.shape[0]).astype(x.dtype)
        return y + layer.bias if "bias" in layer else y


def _compute_with_numpy(model: nn.Module) -> None:
    """Put a ``Blas`` in the place of each linear layer of ``model``."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | nn.QuantizedLinear):
            parent = model
            *path, last = name.split(".")
            for part in path:
                parent = parent[int(part)] if isinstance(parent, list) else getattr(parent, part)
            setattr(parent, last, Blas(module))
        elif isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
            # a module keeps its own methods from being set
            object.__setattr__(module, "as_linear", Blas(module))


def _dense(layer: nn.Module) -> mx.array:
    """The layer's weight [out, in] in fp32."""
    if "scales" not in layer:
        return layer.weight.astype(mx.float32)
    how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    return mx.dequantize(layer.weight, layer.scales, layer.get("biases"), **how).astype(mx.float32)
