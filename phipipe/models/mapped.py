"""PyTorch models whose weights stay in the checkpoint's files: opening one takes no memory,
whatever its size.

Imported in toolchains alone, by what has torch and transformers.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from phipipe.errors import StepFailed
from phipipe.models.tensor_places import Place, places

# safetensors' names of the dtypes that a checkpoint's weights come in, and torch's.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Checkpoint:
    """The tensors of a checkpoint, mapped: read when they are used, dropped by the system when
    memory is short."""

    def __init__(self, folder: Path, places_: Mapping[str, Place] | None = None) -> None:
        self.folder = folder
        self.places = places(folder) if places_ is None else places_
        self._bytes: dict[str, torch.Tensor] = {}
        for name in sorted({place.file for place in self.places.values()}):
            with (folder / name).open("rb") as stream:
                # torch wants memory it could write to
                view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            self._bytes[name] = torch.frombuffer(view, dtype=torch.uint8)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor ``name``, a view of the file."""
        place = self.places[name]
        if place.dtype not in DTYPES:
            raise StepFailed(
                f"`{name}` has the dtype {place.dtype}; weights are read as {', '.join(DTYPES)}"
            )
        dtype: torch.dtype = getattr(torch, DTYPES[place.dtype])
        raw = self._bytes[place.file][place.offset : place.offset + place.size_bytes]
        return self._aligned(raw, dtype).reshape(place.shape)

    def _aligned(self, raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``raw`` as ``dtype``; a copy where the writer of the file did not align its tensors."""
        return (raw if raw.storage_offset() % dtype.itemsize == 0 else raw.clone()).view(dtype)

    def where(self, tensor: torch.Tensor) -> tuple[str, int] | None:
        """(file, offset in bytes) if the first element of ``tensor`` lies in a mapped file."""
        address = tensor.data_ptr()
        for name, raw in self._bytes.items():
            offset = address - raw.data_ptr()
            if 0 <= offset < raw.numel():
                return name, offset
        return None

    def model(self) -> torch.nn.Module:
        """transformers' model for this checkpoint; its weights are views of the files, in their own
        dtypes.

        Buffers that are not in the files (rotary frequencies) are computed as usual.

        Raises:
            StepFailed: names and shapes of the files' tensors are not the architecture's.
        """
        config = AutoConfig.from_pretrained(
            self.folder, trust_remote_code=False, local_files_only=True
        )
        with _meta_parameters():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        state = {name: self.tensor(name) for name in self.places}
        try:
            loaded = model.load_state_dict(state, strict=False, assign=True)
        except RuntimeError as error:
            raise StepFailed(f"the checkpoint does not fit its config: {error}") from None
        model.tie_weights()
        missing = sorted(
            name for name, weight in model.named_parameters() if weight.device.type == "meta"
        )
        if missing or loaded.unexpected_keys:
            odd = (
                f"`{missing[0]}` is missing"
                if missing
                else f"`{loaded.unexpected_keys[0]}` is unknown to it"
            )
            raise StepFailed(f"the weights are not those of a {type(model).__name__}: {odd}")
        for weight in model.parameters():
            weight.requires_grad_(False)
        return model.eval()


@contextlib.contextmanager
def _meta_parameters() -> Iterator[None]:
    """Parameters that are made inside have shapes only; buffers are real."""
    register = torch.nn.Module.register_parameter

    def shapes_only(
        module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None
    ) -> None:
        register(module, name, parameter)
        if parameter is not None:
            kept = type(parameter)(parameter.to("meta"), requires_grad=parameter.requires_grad)
            module._parameters[name] = kept

    torch.nn.Module.register_parameter = shapes_only
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register
