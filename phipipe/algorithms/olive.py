"""Olive's passes as steps before a conversion: weights rotated (QuaRot, SpinQuant), rounding
learned by GPTQ.

Olive ignores parameters that it does not know, skips a pass whose parameters it dislikes, and exits
with 0 either way. So ``run_pass`` calls a pass directly, with parameters held against the pass's
own, and wants to see a model. Olive's engine and commands are never used: they send a first
telemetry event even where telemetry is disabled.

A rotation is fused into the weights (norms go into the linears behind them), so the model computes
the same, in the same architecture; what QuaRot would rotate while running stays out. Checkpoints
are read and written in fp32: in 16 bits a rotated model is another one, and Olive rounds GPTQ's
scales to the width of the weights.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from phipipe.errors import StepFailed
from phipipe.steps import Inputs, Json, Params, Step

if TYPE_CHECKING:
    from phipipe.models.checkpoints import Checkpoint
    from phipipe.recipe.recipe import Recipe

TOOLCHAIN = "olive"
Rotation = Literal["quarot", "spinquant"]
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
SEED = 0
# Rounding of activations that SpinQuant learns against: onnxruntime's kernels for CPUs round to 8
# bits.
ACTIVATION_BITS = 8
_HADAMARD = (
    172,
    156,
    140,
    108,
    60,
    52,
    36,
    28,
    40,
    20,
    12,
    1,
)  # Olive's tables, in the order it tries them


def rotations(method: Rotation | None, recipe: Recipe, checkpoint: Checkpoint) -> list[Step]:
    """``rotate``: the checkpoint rotated by ``method``; nothing if that is None."""
    if method is None:
        return []
    sizes = (checkpoint.hidden_size, checkpoint.head_size)
    mode = "hadamard" if all(has_hadamard(size) for size in sizes) else "random"
    params: dict[str, Json] = {"method": method, "mode": mode, "seed": SEED}
    needs, memory = (
        {"source": "source"},
        6 * checkpoint.parameters + 2**30,
    )  # fp32, and the largest matrix in fp64
    if method == "spinquant":
        params["activation_bits"] = ACTIVATION_BITS
        needs["calibration"] = "calibration"
        memory += (
            8 * checkpoint.parameters + 2**31
        )  # rotated weights anew for each batch, and what leads back
    step = Step(
        name="rotate",
        runs="algorithms/rotate",
        version=1,
        needs=needs,
        params=params,
        toolchain=TOOLCHAIN,
        output_bytes=4 * checkpoint.parameters,
        memory_bytes=memory,
    )
    return [step]


def gptq_step(source: str, checkpoint: Checkpoint, tokens: int, params: Params) -> Step:
    """``gptq``: the output of step ``source`` with its linears rounded; ``params`` are those of
    ``gptq`` below."""
    parameters = checkpoint.parameters
    # all weights in fp32, a layer's inputs and outputs for all tokens, Hessians of one layer
    memory = (
        5 * parameters
        + 12 * tokens * checkpoint.hidden_size
        + 20 * checkpoint.intermediate_size**2
        + 2**30
    )
    return Step(
        name="gptq",
        runs="algorithms/gptq",
        version=1,
        needs={"source": source, "calibration": "calibration"},
        params=params,
        toolchain=TOOLCHAIN,
        output_bytes=(params["bits"] + 1) * parameters // 8
        + 4 * checkpoint.vocab_size * checkpoint.hidden_size,
        memory_bytes=memory,
    )


def has_hadamard(size: int) -> bool:
    """Whether Olive can make a Hadamard matrix of ``size`` rows; else rotations are random
    orthogonal ones."""
    rest = size // next(known for known in _HADAMARD if size % known == 0)
    return rest & (rest - 1) == 0


def rotate(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, rotated; in fp32, all files but weights and config
    the source's own.

    ``params``: method ("quarot" or "spinquant"), mode ("hadamard" or "random"), seed; with
    "spinquant" also activation_bits, and ``inputs["calibration"]`` has the tokens to learn from.

    Raises:
        StepFailed: Olive did something else than asked.
    """
    import tempfile

    from phipipe.algorithms import olive_checkpoint

    settings: dict[str, Any] = {"seed": params["seed"], "rotate_mode": params["mode"]}
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".rotate-") as scratch,
        _seeded(params["seed"]),
    ):
        model, made = open_model(inputs["source"]), Path(scratch) / "made"
        if params["method"] == "spinquant":
            settings |= {
                "a_bits": params["activation_bits"],
                "a_symmetric": True,
                "a_per_token": True,
            }
            settings["training_args"] = _training(params["seed"])
            with _learning_from(inputs["calibration"]):
                run_pass("SpinQuant", model, made, settings)
        else:
            run_pass("QuaRot", model, made, settings)
        olive_checkpoint.write_rotated(inputs["source"], made, out)
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
    import tempfile

    from phipipe.algorithms import olive_checkpoint

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


def open_model(folder: Path) -> Any:
    """Olive's handle of a checkpoint, to be read in fp32 and never with code of its own."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive.model import HfModelHandler

    return HfModelHandler(
        str(folder), load_kwargs={"torch_dtype": "float32", "trust_remote_code": False}
    )


def run_pass(name: str, model: Any, out: Path | None, settings: Mapping[str, Any]) -> Any:
    """Run Olive's pass ``name`` on ``model`` into the new folder ``out``; returns Olive's handle of
    the result.

    ``out`` is None for passes that only annotate the handle.

    Raises:
        StepFailed: a setting that the pass does not know, of the wrong type or refused; or no model
            in ``out``.
    """
    from olive.hardware import DEFAULT_CPU_ACCELERATOR

    kind = getattr(importlib.import_module(PASSES[name]), name)
    config = _checked(kind, DEFAULT_CPU_ACCELERATOR, settings)
    made = kind(DEFAULT_CPU_ACCELERATOR, config).run(model, str(out or ""))
    if out is not None and not ((out / "config.json").is_file() and any(out.glob("*.safetensors"))):
        raise StepFailed(f"Olive's `{name}` ended without an error, and without a model")
    return made


def _checked(kind: Any, accelerator: Any, settings: Mapping[str, Any]) -> Any:
    """The pass's own config with ``settings``, every one of which it must know and take as it
    is."""
    import difflib

    from pydantic import ValidationError

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


def _raised(model: Any) -> dict[str, int]:
    """Linear → its bits, where Olive chose others than the usual ones.

    Raises:
        StepFailed: it chose nothing.
    """
    chosen = model.model_attributes.get("mixed_precision_info", {}).get("overrides", {})
    linears = {name: int(one["bits"]) for name, one in chosen.items() if "embed" not in name}
    if not linears:
        raise StepFailed("Olive's `SelectiveMixedPrecision` chose no layer")
    return linears


def _windows(calibration: Path) -> Any:
    """The calibration's tokens, int64 [windows, window]."""
    import numpy as np
    import torch

    return torch.from_numpy(
        np.load(calibration / "tokens.npy", allow_pickle=False).astype(np.int64)
    )


def _calibration(folder: Path) -> Any:
    """The calibration's tokens, one window at a time, as the data that Olive's passes read (else it
    downloads some)."""
    import torch
    from olive.data.config import DataConfig
    from olive.data.registry import Registry

    def load(folder: str) -> list[Any]:
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


def _training(seed: int) -> Any:
    """How SpinQuant learns: Olive's own rates, one pass over the calibration, in fp32 on the
    CPU."""
    from olive.passes.pytorch.rotate import HFTrainingArguments

    more = {"fp16": False, "use_cpu": True, "seed": seed, "data_seed": seed, "save_strategy": "no"}
    return HFTrainingArguments(
        bf16=False, num_train_epochs=1, learning_rate=1.5, report_to="none", extra_args=more
    )


@contextlib.contextmanager
def _learning_from(calibration: Path) -> Iterator[None]:
    """SpinQuant has parameters neither for its data (it downloads a text) nor for its width (16
    bits, weights too)."""
    import torch
    from olive.passes.pytorch import rotate as module

    rows = _windows(calibration)
    data = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in rows
    ]
    load = module.load_hf_base_model
    ours = {
        "get_calibration_data_config": lambda *_, **__: None,
        "get_training_dataset": lambda _: data,
        "load_hf_base_model": lambda model, torch_dtype=None: load(
            model, torch_dtype=torch.float32
        ),
    }
    theirs = {name: getattr(module, name) for name in ours}
    for name, function in ours.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in theirs.items():
            setattr(module, name, function)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Every source of chance that a pass may draw from starts at ``seed``: SpinQuant's optimizer
    takes Python's own."""
    import random

    import numpy as np
    import torch

    state = random.getstate()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
