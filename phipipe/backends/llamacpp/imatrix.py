"""llama.cpp's importance matrix, computed on the original model in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe import progress
from phipipe.errors import StepFailed

if TYPE_CHECKING:
    from phipipe.steps import Inputs, Params

FILE = "imatrix.npz"


def imatrix(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: mean square of every linear's inputs over the calibration tokens, as ``imatrix.npz``.

    ``inputs``: source, calibration. Keys are GGUF's tensor names, values float32 [inputs of that
    linear]. The same sums that llama.cpp's own tool takes (tools/imatrix: sum of squares / number
    of tokens), but from fp32 activations of the original.

    Raises:
        StepFailed: a linear has no name in GGUF, or some input never was non-zero.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from phipipe.models import transformers_files

    settings: dict[str, Any] = {
        "trust_remote_code": False,
        "use_safetensors": True,
        "local_files_only": True,
    }
    settings |= {
        "config": transformers_files.config_of(inputs["source"]),
        "dtype": torch.float32,
    }
    model = AutoModelForCausalLM.from_pretrained(inputs["source"], **settings).eval()
    windows = np.load(inputs["calibration"] / "tokens.npy")
    sums: dict[str, Any] = {}
    hooks = [
        module.register_forward_pre_hook(_adder(sums, name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.inference_mode():
        for i, window in enumerate(windows):
            model(input_ids=torch.from_numpy(window[None].astype(np.int64)), use_cache=False)
            progress.report(i + 1, len(windows), "windows")
    for hook in hooks:
        hook.remove()
    rename = _names(model.config.model_type, model.config.num_hidden_layers)
    vectors = {
        f"{rename(name)}.weight": (total / windows.size).numpy() for name, total in sums.items()
    }
    dead = [
        name
        for name, values in vectors.items()
        if not np.isfinite(values).all() or not values.any()
    ]
    if dead or not vectors:
        raise StepFailed(
            f"the calibration text drives nothing in `{dead[0]}`"
            if dead
            else "the model has no linears"
        )
    np.savez(out / FILE, **{name: values.astype(np.float32) for name, values in vectors.items()})


def _adder(sums: dict[str, Any], name: str) -> Any:
    def add(_module: Any, given: tuple[Any, ...]) -> None:
        squares = given[0].reshape(-1, given[0].shape[-1]).double().square().sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    return add


def _names(model_type: str, layers: int) -> Any:
    """A function from transformers' module names to GGUF's tensor names."""
    import gguf

    by_name = {name.replace("-", ""): arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    by_name |= {"phi": gguf.MODEL_ARCH.PHI2}
    architecture = by_name.get(model_type.replace("_", ""))
    if architecture is None:
        raise StepFailed(f"GGUF has no names for the layers of `{model_type}`")
    table = gguf.get_tensor_name_map(architecture, layers)

    def rename(name: str) -> str:
        found = table.get_name(name)
        if found is None:
            raise StepFailed(f"GGUF has no name for the layer `{name}`")
        return str(found)

    return rename
