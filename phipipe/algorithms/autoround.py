"""auto-round, with every one of its settings that matters given: it is run in this process, on our
tokens, in fp32.

It rounds linears to the nearest, or as signed gradients of a layer's outputs say (SignRound, Cheng
et al., arXiv 2309.05516).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from auto_round import AutoRound

from phipipe.models import compute, longrope
from phipipe.models.staging import staged
from phipipe.steps import Json, Params


def readable(source: Path, scratch: Path) -> Path:
    """The checkpoint ``source`` as auto-round can read it: itself, or a copy in the new folder
    ``scratch`` whose config spells LongRoPE as transformers wants it."""
    patch = longrope.respelled(json.loads((source / "config.json").read_text("utf-8")))
    return staged(source, patch, scratch) if patch else source


def rounder(
    source: Path, params: Params, exceptions: Mapping[str, Mapping[str, Json]], text: Path | None
) -> AutoRound:
    """What rounds the linears in the layers of the checkpoint ``source`` to ``params["bits"]`` bits
    in groups of ``params["group_size"]``, but for the modules that ``exceptions`` names, with
    auto-round's own settings for each.

    ``params["algorithm"]`` is "rtn" or "signround"; the latter takes ``params["iterations"]`` steps
    a layer, and learns from the tokens in ``text``, ``evaluate/calibration``'s folder.
    """
    windows = np.zeros((0, 1), np.int64)
    if params["algorithm"] == "signround":
        assert text is not None
        windows = np.load(text / "tokens.npy", allow_pickle=False).astype(np.int64)
    return AutoRound(
        str(source),
        scheme=f"W{params['bits']}A16",
        **({"layer_config": dict(exceptions)} if exceptions else {}),
        **_settings(params),
        **_dataset(windows),
    )


def _settings(params: Params) -> dict[str, Json]:
    """auto-round's own words for ``params``, and all of its defaults that matter.

    Without ``disable_model_free`` it would send shards to spawned processes, which the worker's
    guards do not reach; without ``disable_opt_rtn`` its "data-free" rounding downloads a text.
    Arithmetic is fp32: left alone it depends on whether this machine has bf16. No weights are set
    aside on disk (``low_cpu_mem_usage``).
    """
    how: dict[str, Json] = {"iters": 0, "disable_opt_rtn": True, "disable_model_free": True}
    how["device_map"] = "cpu"
    if params["algorithm"] == "signround":
        compute.take_all_cores()
        how = {
            "iters": params["iterations"],
            "gradient_accumulate_steps": 1,
            "enable_minmax_tuning": True,
            "device_map": str(compute.device(learns=True)),
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
