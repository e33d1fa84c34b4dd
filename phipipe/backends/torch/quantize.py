"""Weights of 8 or 4 bits, rounded and packed by auto-round."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from auto_round import AutoRound

from phipipe.backends.torch import exact, packing
from phipipe.backends.torch.convert import respelled
from phipipe.backends.torch.verify import verify
from phipipe.errors import StepFailed
from phipipe.models import tensors
from phipipe.models.staging import staged
from phipipe.steps import Inputs, Json, Params


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]`` with the linears of its decoder layers at ``params["bits"]`` bits.

    ``params`` holds the options besides, and in "widths" how single matrices are stored. With
    "signround", ``inputs["calibration"]`` has the tokens to learn from. Where ``inputs["weights"]``
    has learned weights, they are stored as they are. The result is verified from disk before the
    step counts as done.

    Raises:
        StepFailed: auto-round did something else than asked.
    """
    source, patch = inputs["source"], respelled(inputs["source"])
    weights = inputs.get("weights")
    if weights is not None:
        exact.store(source, weights, out, params, patch)
        verify(source, out, params, weights)
        return
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".quantize-") as scratch:
        read = staged(source, patch, Path(scratch) / "source") if patch else source
        packed = Path(scratch) / "packed"
        _auto_round(read, packed, params, inputs.get("calibration"))
        _replace_linears(source, packed, out, patch)
    verify(source, out, params)


def _replace_linears(source: Path, packed: Path, out: Path, patch: dict[str, Json]) -> None:
    """Copy ``source`` to ``out`` with what auto-round left in ``packed`` in its linears' place."""
    places = tensors.where_are(sorted(packed.rglob("*.safetensors")))
    config = min(packed.rglob("config.json"), default=None)
    if config is None or not places:
        raise StepFailed("auto-round left no checkpoint")
    settings = json.loads(config.read_text("utf-8")).get("quantization_config", {})

    def change(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        keys = [name.removesuffix("weight") + part for part in tensors.PARTS]
        parts = {key: tensors.read(places[key], key) for key in keys if key in places}
        return parts or {name: tensor}

    tensors.rewrite(source, out, change, {"quantization_config": settings, **patch})


def _auto_round(source: Path, out: Path, params: Params, calibration: Path | None) -> None:
    """Run auto-round in this process."""
    windows = np.zeros((0, 1), np.int64)
    if params["algorithm"] == "signround":
        assert calibration is not None
        windows = np.load(calibration / "tokens.npy", allow_pickle=False).astype(np.int64)
    # Packed otherwise without symmetry, it would be AWQ's format, which no CPU layer reads.
    layout = "auto_round" if params["symmetric"] else "auto_round:gptqmodel"
    extra = packing.exceptions(packing.shapes(source), params)
    rounding = AutoRound(
        str(source),
        scheme=f"W{params['bits']}A16",
        **({"layer_config": extra} if extra else {}),
        **_settings(params),
        **_dataset(windows),
    )
    rounding.quantize_and_save(str(out), format=layout)


def _settings(params: Params) -> dict[str, Json]:
    """auto-round's own words for ``params``, and all of its defaults that matter.

    Without ``disable_model_free`` it would send shards to spawned processes, which the worker's
    guards do not reach; without ``disable_opt_rtn`` its "data-free" rounding downloads a text.
    Arithmetic is fp32: left alone it depends on whether this machine has bf16. No weights are set
    aside on disk (``low_cpu_mem_usage``).
    """
    how: dict[str, Json] = {"iters": 0, "disable_opt_rtn": True, "disable_model_free": True}
    if params["algorithm"] == "signround":
        how = {
            "iters": params["iterations"],
            "gradient_accumulate_steps": 1,
            "enable_minmax_tuning": True,
        }
    off = ("enable_torch_compile", "trust_remote_code", "low_gpu_mem_usage", "low_cpu_mem_usage")
    return {
        **how,
        "seed": 42,
        "bits": params["bits"],
        "group_size": params["group_size"],
        "sym": params["symmetric"],
        "scale_dtype": "fp16",
        "quant_lm_head": False,
        "amp": False,
        "model_dtype": "float32",
        "device_map": "cpu",
        **dict.fromkeys(off, False),
    }


def _dataset(windows: npt.NDArray[np.int64]) -> dict[str, Json]:
    """What auto-round learns from: always given, or its default would be downloaded.

    Masks are our own: it would hide repeated tokens at a window's end, and every pad token.
    """
    ids = [torch.from_numpy(window)[None] for window in windows]
    return {
        "dataset": [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids],
        "nsamples": max(1, len(windows)),
        "seqlen": windows.shape[1],
        "batch_size": 8,
    }
