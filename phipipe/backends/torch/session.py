"""A checkpoint in PyTorch on the CPU or an NVIDIA GPU, in fp32 or as transformers runs it: logits,
greedy text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from phipipe.backends.choosing import Choose
from phipipe.backends.torch import packing
from phipipe.errors import StepFailed
from phipipe.models import compute, tokenizer_files
from phipipe.models.transformers_files import config_of


class Session:
    """``Runtime`` over a checkpoint's folder, on the unit ``api``; ``as_run``: in the dtype that
    transformers takes."""

    def __init__(self, folder: Path, api: str = "cpu", as_run: bool = False) -> None:
        self._unit = compute.on(api)
        load = _load_as_it_is if as_run else _load
        self._model = load(folder, self._unit)
        self._ends = tokenizer_files.end_ids(self._model.generation_config.eos_token_id)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            ids = torch.tensor([list(tokens)], device=self._unit)
            logits = self._model(input_ids=ids, use_cache=False).logits[0]
            rows: npt.NDArray[np.float32] = logits.float().cpu().numpy()
        return rows

    def generate(
        self, prompt: Sequence[int], limit: int, choose: Choose | None = None
    ) -> Iterator[int]:
        ids, cache = torch.tensor([list(prompt)], device=self._unit), None
        for _ in range(limit):
            with torch.inference_mode():
                output = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            last = output.logits[0, -1]
            token = int(last.argmax()) if choose is None else choose(last.float().cpu().numpy())
            yield token
            if token in self._ends:
                return
            ids = torch.tensor([[token]], device=self._unit)

    def close(self) -> None:
        del self._model


def _load(folder: Path, unit: torch.device) -> PreTrainedModel:
    """The model in fp32: matrix products in fp16 accumulate as a CPU likes, and only what is stored
    is to be judged."""
    packed = "quantization_config" in json.loads((folder / "config.json").read_text("utf-8"))
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=_packed_config(folder) if packed else config_of(folder),
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    ).eval()
    for name, module in list(model.named_modules()):
        if hasattr(module, "qweight"):
            model.set_submodule(name, _unpacked(name, module))
    return model.to(unit)


def _load_as_it_is(folder: Path, unit: torch.device) -> PreTrainedModel:
    """The model as the program on the card loads it."""
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        device_map=str(unit),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    ).eval()


def _packed_config(folder: Path) -> PretrainedConfig:
    """The config of a checkpoint that auto-round packed, which it then loads in fp32."""
    # Unpacked checkpoints do not pay for it: it takes seconds to import.
    from auto_round.inference.backend import BackendInfos
    from auto_round.logger import logger

    logger.setLevel("WARNING")  # chats load models too
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    config.quantization_config["backend"] = "torch"
    for name in ("auto_round:torch", "auto_round:torch_zp"):
        # unless fp32 is listed, the whole model is cast to fp16 after loading, its rotary
        # frequencies included
        BackendInfos[name].compute_dtype = ["float32"]
    return config


def _unpacked(name: str, layer: torch.nn.Module) -> torch.nn.Linear:
    """auto-round's ``layer`` as a dense one in fp32; checked against its own output."""
    linear = torch.nn.Linear(
        layer.infeatures, layer.outfeatures, bias=layer.bias is not None, device="meta"
    )
    linear.weight = torch.nn.Parameter(_dense(layer).t().contiguous(), requires_grad=False)
    if layer.bias is not None:
        linear.bias = torch.nn.Parameter(layer.bias.float(), requires_grad=False)
    with torch.inference_mode():
        probe = torch.sin(torch.arange(layer.infeatures, dtype=torch.float32))[None]
        theirs, ours = layer(probe), linear(probe)
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max())):
            raise StepFailed(f"`{name}` is not packed as auto-round reads it")
    return linear


def _dense(layer: torch.nn.Module) -> torch.Tensor:
    """The values of auto-round's ``layer``, float32 [inputs, outputs]; its scales become fp32."""
    layer.scales = layer.scales.float()  # 11 bits times integers: exact in fp32, rounded in fp16
    parts = {"qweight": layer.qweight, "qzeros": layer.qzeros}
    less_one = type(layer).__module__.endswith("_zp")  # GPTQ's layout
    return packing.dense(parts, layer.bits, less_one, layer.scales)
