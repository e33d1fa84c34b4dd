"""The builder of onnxruntime-genai with some of its private functions replaced, so that it works on
weights that stay where they are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx_ir
import torch
from onnxruntime_genai import __version__ as version
from onnxruntime_genai.models import builder  # noqa: F401 (makes `builders` importable)
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from phipipe.backends.onnxruntime import links
from phipipe.backends.onnxruntime.layout import DATA
from phipipe.errors import StepFailed
from phipipe.models import mapped

KNOWN = "0.18."  # the versions of onnxruntime-genai whose builder is known from within


@contextlib.contextmanager
def lean_builder(checkpoint: mapped.Checkpoint, *, linked: bool) -> Iterator[None]:
    """Have the builder load its weights from ``checkpoint``'s files; ``linked``: and save links
    instead of weights.

    Raises:
        StepFailed: this is another version of onnxruntime-genai.
    """
    if not version.startswith(KNOWN):
        raise StepFailed(f"onnxruntime-genai is {version}, and not {KNOWN}x")
    model_class = sys.modules["builders.base"].Model
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            patch.object(
                AutoModelForCausalLM, "from_pretrained", lambda *_, **__: checkpoint.model()
            )
        )
        # the builder makes layers to put slices of others into, and they need not be filled with
        # random numbers first
        stack.enter_context(patch.object(torch.nn.Linear, "reset_parameters", lambda self: None))
        stack.enter_context(_JoinsViews())
        smollm = sys.modules["builders.smollm"].SmolLM3Model
        skipping = _skipping(smollm.make_attention)
        stack.enter_context(patch.object(smollm, "make_attention", skipping))
        if linked:
            noting = _noting(model_class.make_initializer, checkpoint)
            stack.enter_context(patch.object(model_class, "make_initializer", noting))
            stack.enter_context(patch.object(model_class, "save_model", _save))
        yield


def _skipping(make: Callable[..., None]) -> Callable[..., None]:
    """SmolLM3's ``make_attention``, which leaves positions out where the model does without them:
    the builder tries to put them outside of the attention there."""

    def skipping(self: Any, layer_id: int, *args: object, **settings: object) -> None:
        attributes = self.attention_attrs
        usual = attributes["rope"]
        attributes["rope"] = usual and bool(self.no_rope_layers[layer_id])
        make(self, layer_id, *args, **settings)
        attributes["rope"] = usual

    return skipping


class _JoinsViews(TorchFunctionMode):  # type: ignore[misc]
    """``torch.cat`` of rows that follow one another in a file is a view of that file."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        joined = _joined(*args, **(kwargs or {})) if func is torch.cat else None
        return func(*args, **(kwargs or {})) if joined is None else joined


def _joined(tensors: Sequence[torch.Tensor], dim: int = 0, **_: object) -> torch.Tensor | None:
    """The rows of ``tensors`` as one view, if they lie one after another in the same storage; else
    None."""
    first = tensors[0]
    if dim != 0 or first.dim() == 0:
        return None
    end = first.storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        alike = (
            tensor.dtype == first.dtype
            and tensor.shape[1:] == first.shape[1:]
            and tensor.is_contiguous()
        )
        if not same or not alike or tensor.storage_offset() != end:
            return None
        end += tensor.numel()
    rows = sum(tensor.shape[0] for tensor in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def _noting(make: Callable[..., None], checkpoint: mapped.Checkpoint) -> Callable[..., None]:
    """The builder's ``make_initializer``, which notes a link where the tensor is one of the
    checkpoint's."""

    def noting(
        self: Any,
        tensor: object,
        /,
        name: str,
        *,
        to: onnx_ir.DataType | None = None,
        raw: bool = False,
    ) -> None:
        make(self, tensor, name, to=to, raw=raw)
        link = None if to is None or raw else links.link(tensor, name, to, checkpoint)
        if link is not None:
            self.model.graph.initializers[name].const_value = link

    return noting


def _save(self: Any, folder: str) -> None:
    """In place of the builder's ``save_model``: links stay links, everything else goes into the
    data file."""
    self.model.graph.sort()
    with (Path(folder) / DATA).open("wb") as stream:
        for name, value in self.model.graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, onnx_ir.ExternalTensor):
                continue
            raw, start = tensor.tobytes(), stream.tell()
            stream.write(raw)
            value.const_value = onnx_ir.ExternalTensor(
                DATA,
                start,
                len(raw),
                tensor.dtype,
                shape=tensor.shape,
                name=name,
                base_dir=folder,
            )
    self.stamp_build_metadata(self.model)
    onnx_ir.save(self.model, Path(folder) / self.filename)
    cache = Path(self.cache_dir)
    if cache.is_dir() and not any(cache.iterdir()):
        cache.rmdir()
