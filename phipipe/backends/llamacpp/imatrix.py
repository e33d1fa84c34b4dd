"""llama.cpp's importance matrix, computed on the original model in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from phipipe import progress
from phipipe.backends.llamacpp import IMATRIX
from phipipe.errors import StepFailed
from phipipe.models import compute
from phipipe.models.transformers_files import config_of
from phipipe.steps import Inputs, Params


def imatrix(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: mean square of every linear's inputs over the calibration tokens, as ``imatrix.npz``.

    ``inputs``: source, calibration. Keys are GGUF's tensor names, values float32 [inputs of that
    linear]. The same sums that llama.cpp's own tool takes (tools/imatrix: sum of squares / number
    of tokens), but from fp32 activations of the original.

    Raises:
        StepFailed: a linear has no name in GGUF, or some input never was non-zero.
    """
    model = AutoModelForCausalLM.from_pretrained(
        inputs["source"],
        config=config_of(inputs["source"]),
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    ).eval()
    model.to(compute.device(learns=True))
    windows = np.load(inputs["calibration"] / "tokens.npy")
    rename = _names(model.config.model_type, model.config.num_hidden_layers)
    vectors = {
        f"{rename(name)}.weight": (total / windows.size).cpu().numpy()
        for name, total in _squares(model, windows).items()
    }
    for name, values in vectors.items():
        if not np.isfinite(values).all() or not values.any():
            raise StepFailed(f"the calibration text drives nothing in `{name}`")
    if not vectors:
        raise StepFailed("the model has no linears")
    np.savez(out / IMATRIX, **{name: row.astype(np.float32) for name, row in vectors.items()})


def _squares(model: PreTrainedModel, windows: npt.NDArray[np.int32]) -> dict[str, torch.Tensor]:
    """The sum of the squares of every linear's inputs over ``windows`` of tokens, in fp64."""
    sums: dict[str, torch.Tensor] = {}

    def adder(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(_module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            squares = given[0].reshape(-1, given[0].shape[-1]).double().square().sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return add

    hooks = [
        module.register_forward_pre_hook(adder(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.inference_mode():
        for i, window in enumerate(windows):
            ids = torch.from_numpy(window[None].astype(np.int64)).to(model.device)
            model(input_ids=ids, use_cache=False)
            progress.report(i + 1, len(windows), "windows")
    for hook in hooks:
        hook.remove()
    return sums


def _names(model_type: str, layers: int) -> Callable[[str], str]:
    """A function from transformers' module names to GGUF's tensor names."""
    by_name = {name.replace("-", ""): arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    # types whose layers the converter writes as another architecture's
    by_name |= {"phi": gguf.MODEL_ARCH.PHI2, "mistral": gguf.MODEL_ARCH.LLAMA}
    architecture = by_name.get(model_type.replace("_", ""))
    if architecture is None:
        raise StepFailed(f"GGUF has no names for the layers of `{model_type}`")
    table = gguf.get_tensor_name_map(architecture, layers)

    def rename(name: str) -> str:
        known = table.get_name(name)
        if known is None:
            raise StepFailed(f"GGUF has no name for the layer `{name}`")
        return str(known)

    return rename
