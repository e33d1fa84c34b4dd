"""A model in fp32 of which one decoder layer at a time is in memory: all texts go through a layer
before the next.

transformers maps a checkpoint's weights as they are stored, and so they stay in its files; each
layer is widened shortly before its turn comes (``widened``), on the unit that ``compute`` chooses.
The arithmetic, operation by operation, is that of the whole model in fp32. (Where transformers
merges what the files hold apart, as experts, the merged weights lie in memory in 16 bits.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoModelForCausalLM

from phipipe import progress
from phipipe.errors import SourceError
from phipipe.models import compute, products, tensors, tokenizer_files, transformers_files
from phipipe.models.layerwise_memory import TOGETHER
from phipipe.models.widened import Widened
from phipipe.processes import company


def _tells(before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress.report(before + done, total, "layers")


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse a weight of the original that is no number: all that follows would be blamed on the
    conversion.

    Raises:
        SourceError: names the tensor.
    """
    if tensor.numel() and not all(map(torch.isfinite, torch.aminmax(tensor.detach()))):
        what = "NaN" if bool(tensor.isnan().any()) else "infinite values"
        raise SourceError(
            f"the original has {what} in tensor `{name}`",
            hint="the checkpoint was damaged before: take or save it again",
        )


@dataclass
class Pass:
    """One text on its way, or several of one length: ``hidden`` [texts, tokens, hidden size], and
    what the model hands each layer beside it."""

    hidden: torch.Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    cache: Any


Hook = Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]


@contextlib.contextmanager
def hooked(modules: Mapping[str, torch.nn.Module], hook: Callable[[str], Hook]) -> Iterator[None]:
    """While this lasts, ``hook(name)`` hears what each module is given."""
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Layerwise:
    """The causal language model of the checkpoint in ``folder``, in fp32.

    ``rounded``: a dtype of 16 bits. Weights, and what linear layers multiply them with, are then
    rounded to it; sums stay in fp32. It is what a runtime does that stores this dtype. ``learns``:
    as ``compute.device``, which gives the ``unit`` of all tensors that it takes and gives.
    """

    def __init__(
        self, folder: Path, rounded: torch.dtype | None = None, *, learns: bool = False
    ) -> None:
        self._rounded = rounded
        if learns:
            compute.take_all_cores()
        self.unit = compute.CPU if rounded else compute.device(learns=learns)
        stored = {"BF16": torch.bfloat16, "F16": torch.float16}
        kinds = tensors.dtypes(folder)
        # Where they are cast, nothing is mapped.
        dtype = stored.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=transformers_files.config_of(folder),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        ).eval()
        self._base: Any = self._model.base_model
        self.layers: list[torch.nn.Module] = list(self._base.layers)  # weights as files have them
        self._widened = Widened(self.layers, rounded, company.at(folder), self.unit)
        self.ends = frozenset(tokenizer_files.end_ids(self._model.generation_config.eos_token_id))
        for name, module in self._base.named_children():
            if name not in ("embed_tokens", "layers"):
                module.to(self.unit, torch.float32)
        inner = {id(tensor) for layer in self.layers for tensor in layer.parameters()}
        for name, tensor in self._model.named_parameters():
            if id(tensor) not in inner:
                _check_finite(name, tensor)
        self._unseen = set(range(len(self.layers)))  # layers whose weights were not looked at
        for module in self._model.modules() if rounded else ():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(self._round_input)

    def _stored(self, tensor: torch.Tensor) -> torch.Tensor:
        """A weight in fp32 on ``unit``, as a runtime has it that stores ``rounded``."""
        return self._rounds(tensor.to(self.unit)).float()

    def _rounds(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._rounded) if self._rounded else tensor

    def _round_input(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self._rounded
        end = torch.finfo(self._rounded).max  # no runtime lets activations overflow
        return (args[0].clamp(-end, end).to(self._rounded).float(), *args[1:])

    def embed(self, ids: Sequence[int], table: torch.Tensor | None = None) -> torch.Tensor:
        """What the model sees of ``ids``: a tensor, float32 [len(ids), hidden size]. ``table``:
        another embedding than its own, [vocabulary, hidden size]."""
        own = self._base.embed_tokens
        with torch.inference_mode():
            weight = own.weight if table is None else table
            places = torch.tensor(list(ids), dtype=torch.long, device=weight.device)
            rows = functional.embedding(places, weight)
            scale = getattr(own, "scalar_embed_scale", 1.0)  # Gemma's, unrounded
            return self._stored(rows) * scale

    def logits(
        self, windows: Sequence[Sequence[int] | torch.Tensor]
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Logits of every position of each window (ids, or vectors as of ``embed``), float32
        [len(window), vocabulary], in order."""
        group, layers = max(1, TOGETHER // max(map(len, windows))), len(self.layers)
        total = layers * -(-len(windows) // group)
        for start in range(0, len(windows), group):
            with torch.inference_mode():
                passes = self.enter(windows[start : start + group])
                self.advance(passes, _tells(layers * (start // group), total))
            while passes:
                with torch.inference_mode():
                    logits = self.predictions(passes.pop(0))
                yield logits[0].cpu().numpy()

    def enter(self, windows: Sequence[Sequence[int] | torch.Tensor]) -> list[Pass]:
        """What reaches the first layer of each window."""
        return [self.enter_cached(self.seen(window)[None], cached=False) for window in windows]

    def enter_together(self, windows: Sequence[Sequence[int]]) -> Pass:
        """What reaches the first layer of all windows, which have one length: ``hidden`` [windows,
        tokens, hidden size]."""
        hidden = torch.stack([self.embed(window) for window in windows])
        return self.enter_cached(hidden, cached=False)

    def seen(self, text: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """The vectors of a text, float32 [tokens, hidden size]: ids, or already such."""
        return self.embed(text) if isinstance(text, Sequence) else text

    def weights(
        self, i: int, *, written: bool = False, stored: bool = False
    ) -> dict[str, torch.Tensor]:
        """The weights of layer ``i`` in fp32, by their names in it, in memory that the next call
        takes again. Where they will be ``written`` to, none is the files' own. Meanwhile the next
        layer is read. Matrices may be as they are ``stored``, where linears alone take them.

        Raises:
            SourceError: one is no number.
        """
        weights = self._widened.stored(i) if stored else self._widened.weights(i, written)
        if i in self._unseen:
            self._unseen.discard(i)
            for name, tensor in weights.items():
                _check_finite(f"model.layers.{i}.{name}", tensor)
        return weights

    def through(self, i: int, weights: Mapping[str, torch.Tensor], one: Pass) -> torch.Tensor:
        """What leaves layer ``i`` with these ``weights``, float32 [texts, tokens, hidden size]."""
        args, settings = one.calls[i]
        with products.Quick():
            output = functional_call(self.layers[i], dict(weights), (one.hidden, *args), settings)
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return hidden

    @property
    def config(self) -> Any:
        """The checkpoint's settings, as transformers has them."""
        return self._model.config

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self._model.config.tie_word_embeddings)

    def table(self, head: bool) -> torch.Tensor:
        """The matrix of the ``head``, else of the embedding, float32 [vocabulary, hidden size]."""
        own = self._base.embed_tokens.weight
        return self.head["lm_head.weight"] if head else self._stored(own)

    @cached_property
    def head(self) -> Mapping[str, torch.Tensor]:
        """What the head multiplies and adds, float32, by its names in the model."""
        # Not in inference mode: who measures gradients begins at the head.
        with torch.inference_mode(mode=False), torch.no_grad():
            head = self._model.get_output_embeddings()
            return {n: self._stored(t) for n, t in head.named_parameters(prefix="lm_head")}

    def predictions(
        self, one: Pass, head: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits [texts, tokens, vocabulary] of a pass that is through all layers, with another
        ``head`` than the model's own where one is given."""
        with self._without_layers(), products.Quick():
            settings = {"inputs_embeds": one.hidden, "use_cache": False}
            given = dict(head or self.head)
            return functional_call(self._model, given, (), settings, tie_weights=False).logits

    def linears(self, i: int) -> dict[str, torch.nn.Module]:
        """The linears of layer ``i``, by the names of their weights in it."""
        return {
            f"{name}.weight": module
            for name, module in self.layers[i].named_modules()
            if isinstance(module, torch.nn.Linear)
        }

    def head_inputs(self, one: Pass) -> torch.Tensor:
        """What the head multiplies, of a pass that is through all layers, [texts, tokens, hidden
        size]."""
        with self._without_layers():
            done = self._base(inputs_embeds=one.hidden, use_cache=False)
        hidden: torch.Tensor = done.last_hidden_state
        return hidden

    def enter_cached(
        self, hidden: torch.Tensor, cache: Any = None, *, cached: bool = True, **settings: Any
    ) -> Pass:
        """What reaches the first layer of ``hidden`` [texts, tokens, hidden size] after what the
        ``cache`` holds; the layers add to it. ``settings``: more that the model is given."""
        with self._without_layers() as calls:
            done = self._base(
                inputs_embeds=hidden, past_key_values=cache, use_cache=cached, **settings
            )
        return Pass(hidden, list(calls), done.past_key_values)

    def advance(self, passes: Sequence[Pass], told: Callable[[int], None] | None = None) -> None:
        """Take all passes through all layers; ``told`` how many layers that was so far."""
        few = sum(one.hidden[..., 0].numel() for one in passes) <= products.FEW
        stored = few and self._widened.can_be_stored
        for i in range(len(self.layers)):
            weights = self.weights(i, stored=stored)
            for one in passes:
                one.hidden = self.through(i, weights, one)
            if told:
                told(i + 1)

    @property
    def weight_bytes(self) -> int:
        """Of all layers, as they are stored."""
        weights = (tensor for layer in self.layers for tensor in layer.parameters())
        return sum(tensor.numel() * tensor.element_size() for tensor in weights)

    def stay(self) -> None:
        """Have all layers' weights, as they are stored, on ``unit`` from now on."""
        for layer in self.layers:
            layer.to(self.unit)

    @contextlib.contextmanager
    def _without_layers(self) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
        """The model without its layers; yields, call by call, what each was called with beside the
        hidden states."""
        calls = []

        class Passes(torch.nn.Module):  # type: ignore[misc]
            def forward(self, hidden: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
                calls.append((args, settings))
                return hidden.float()  # as what follows the layers has its weights

        layers, stand_in = self._base.layers, Passes()
        self._base.layers = torch.nn.ModuleList([stand_in] * len(self.layers))
        try:
            yield calls
        finally:
            self._base.layers = layers
