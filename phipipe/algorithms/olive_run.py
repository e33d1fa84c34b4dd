"""The steps that run Olive's passes, each by itself, held to what was asked.

Olive ignores parameters that it does not know, skips a pass whose parameters it dislikes, and exits
with 0 either way. So ``run_pass`` calls a pass directly, with parameters held against the pass's
own, and wants to see a model. Olive's engine and commands are never used: they send a first
telemetry event even where telemetry is disabled.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import random
import reprlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from phipipe.algorithms import olive_checkpoint
from phipipe.algorithms.olive import SEED
from phipipe.errors import StepFailed
from phipipe.steps import Inputs, Json, Params

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"  # read while Olive is imported

from olive.data.config import DataConfig
from olive.data.registry import Registry
from olive.hardware import DEFAULT_CPU_ACCELERATOR
from olive.model import HfModelHandler
from olive.passes.pytorch import rotate as rotate_module
from olive.passes.pytorch.rotate import HFTrainingArguments

PASSES: Mapping[str, str] = {
    "QuaRot": "olive.passes.pytorch.rotate",
    "SpinQuant": "olive.passes.pytorch.rotate",
    "SelectiveMixedPrecision": "olive.passes.pytorch.selective_mixed_precision",
    "Gptq": "olive.passes.pytorch.gptq",
}
# Our `mixed` → Olive's algorithm that picks what stays at 8 bits.
MIXED: Mapping[str, str] = {
    "head": "k_quant_last",
    "down": "k_quant_down",
    "layers": "k_quant_mixed",
}


def rotate(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, rotated; in fp32, all files but weights and config
    the source's own.

    ``params``: method ("quarot" or "spinquant"), mode ("hadamard" or "random"), seed; with
    "spinquant" also activation_bits, and ``inputs["calibration"]`` has the tokens to learn from.

    Raises:
        StepFailed: Olive did something else than asked.
    """
    settings: dict[str, Json] = {"seed": params["seed"], "rotate_mode": params["mode"]}
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".rotate-") as scratch,
        _seeded(params["seed"]),
    ):
        model, rotated = open_model(inputs["source"]), Path(scratch) / "made"
        if params["method"] == "spinquant":
            settings |= {
                "a_bits": params["activation_bits"],
                "a_symmetric": True,
                "a_per_token": True,
            }
            settings["training_args"] = _training(params["seed"])
            with _learning_from(inputs["calibration"]):
                run_pass("SpinQuant", model, rotated, settings)
        else:
            run_pass("QuaRot", model, rotated, settings)
        olive_checkpoint.write_rotated(inputs["source"], rotated, out)
    olive_checkpoint.verify_rotated(inputs["source"], out)


def gptq(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]`` with all its linears, LM head included, rounded by GPTQ to
    integers.

    ``params``: bits, group_size, symmetric, damp (share of the Hessian's mean that is added to its
    diagonal) and mixed (what stays at 8 bits: a key of ``MIXED``, or "none").
    ``inputs["calibration"]`` has the tokens to learn from. Writes Olive's own layout; what is not a
    linear is the source's own.

    Raises:
        StepFailed: Olive did something else than asked.
    """
    source = inputs["source"]
    raised: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".gptq-") as scratch, _seeded(SEED):
        model = open_model(source)
        if params["mixed"] != "none":
            chosen = {"algorithm": MIXED[params["mixed"]], "bits": params["bits"], "high_bits": 8}
            model = run_pass("SelectiveMixedPrecision", model, None, chosen)
            raised = _raised(model)
        settings = {name: params[name] for name in ("bits", "group_size")} | {
            "sym": params["symmetric"]
        }
        settings |= {"lm_head": True, "desc_act": False, "damp_percent": params["damp"]}
        settings["data_config"] = _calibration(inputs["calibration"])
        run_pass("Gptq", model, Path(scratch) / "made", settings)
        olive_checkpoint.write_packed(source, Path(scratch) / "made", out)
    olive_checkpoint.verify_packed(source, out, params, raised)


def open_model(folder: Path) -> HfModelHandler:
    """Olive's handle of a checkpoint, to be read in fp32 and never with code of its own."""
    return HfModelHandler(
        str(folder), load_kwargs={"torch_dtype": "float32", "trust_remote_code": False}
    )


def run_pass(
    name: str, model: HfModelHandler, out: Path | None, settings: Mapping[str, Json]
) -> HfModelHandler:
    """Run Olive's pass ``name`` on ``model`` into the new folder ``out``; returns Olive's handle of
    the result.

    ``out`` is None for passes that only annotate the handle.

    Raises:
        StepFailed: a setting that the pass does not know, of the wrong type or refused; or no model
            in ``out``.
    """
    kind = getattr(importlib.import_module(PASSES[name]), name)
    config = _checked(kind, DEFAULT_CPU_ACCELERATOR, settings)
    handle = kind(DEFAULT_CPU_ACCELERATOR, config).run(model, str(out or ""))
    if out is not None and not ((out / "config.json").is_file() and any(out.glob("*.safetensors"))):
        raise StepFailed(f"Olive's `{name}` ended without an error, and without a model")
    return handle


def _checked(kind: Any, accelerator: Any, settings: Mapping[str, Json]) -> Any:
    """The pass's own config with ``settings``, every one of which it must know and take as it
    is."""
    name, known = kind.__name__, list(kind.default_config(accelerator))
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has: {', '.join(known)}"
            raise StepFailed(f"Olive's `{name}` has no parameter `{key}`", hint=hint)
    try:
        config = kind.generate_config(accelerator, dict(settings), disable_search=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise StepFailed(f"Olive's `{name}` refuses `{wrong['loc'][0]}`: {wrong['msg']}") from error
    for key, value in settings.items():
        taken = getattr(config, key)
        if taken != value or isinstance(taken, bool) != isinstance(value, bool):
            raise StepFailed(
                f"Olive's `{name}` takes `{key}: {reprlib.repr(value)}` as {reprlib.repr(taken)}"
            )
    if not kind.validate_config(config, accelerator):
        raise StepFailed(f"Olive's `{name}` refuses its parameters: {reprlib.repr(dict(settings))}")
    return config


def _raised(model: HfModelHandler) -> dict[str, int]:
    """Linear → its bits, where Olive chose others than the usual ones.

    Raises:
        StepFailed: it chose nothing.
    """
    chosen = model.model_attributes.get("mixed_precision_info", {}).get("overrides", {})
    linears = {name: int(one["bits"]) for name, one in chosen.items() if "embed" not in name}
    if not linears:
        raise StepFailed("Olive's `SelectiveMixedPrecision` chose no layer")
    return linears


def _windows(calibration: Path) -> torch.Tensor:
    """The calibration's tokens, int64 [windows, window]."""
    return torch.from_numpy(
        np.load(calibration / "tokens.npy", allow_pickle=False).astype(np.int64)
    )


def _calibration(folder: Path) -> DataConfig:
    """The calibration's tokens, one window at a time, as the data that Olive's passes read (else it
    downloads some)."""

    def load(folder: str) -> list[tuple[dict[str, torch.Tensor], int]]:
        return [
            ({"input_ids": row, "attention_mask": torch.ones_like(row)}, 0)
            for row in _windows(Path(folder))
        ]

    Registry.register_dataset("phipipe_calibration")(load)
    return DataConfig(
        name="calibration",
        type="datacontainer",
        load_dataset_config={"type": "phipipe_calibration", "params": {"folder": str(folder)}},
        pre_process_data_config={"type": "skip_pre_process"},
        post_process_data_config={"type": "skip_post_process"},
        dataloader_config={"type": "default_dataloader", "params": {"batch_size": 1}},
    )


def _training(seed: int) -> HFTrainingArguments:
    """How SpinQuant learns: Olive's own rates, one pass over the calibration, in fp32 on the
    CPU."""
    more = {"fp16": False, "use_cpu": True, "seed": seed, "data_seed": seed, "save_strategy": "no"}
    return HFTrainingArguments(
        bf16=False, num_train_epochs=1, learning_rate=1.5, report_to="none", extra_args=more
    )


@contextlib.contextmanager
def _learning_from(calibration: Path) -> Iterator[None]:
    """SpinQuant has parameters neither for its data (it downloads a text) nor for its width (16
    bits, weights too)."""
    rows = _windows(calibration)
    data = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in rows
    ]
    load = rotate_module.load_hf_base_model
    ours = {
        "get_calibration_data_config": lambda *_, **__: None,
        "get_training_dataset": lambda _: data,
        "load_hf_base_model": lambda model, torch_dtype=None: load(
            model, torch_dtype=torch.float32
        ),
    }
    theirs = {name: getattr(rotate_module, name) for name in ours}
    for name, function in ours.items():
        setattr(rotate_module, name, function)
    try:
        yield
    finally:
        for name, function in theirs.items():
            setattr(rotate_module, name, function)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Every source of chance that a pass may draw from starts at ``seed``: SpinQuant's optimizer
    takes Python's own."""
    state = random.getstate()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
