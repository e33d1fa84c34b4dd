"""Quantization: the weights of a ``.tflite`` at 8 or 4 bits, by ai-edge-quantizer."""

from __future__ import annotations

from pathlib import Path

from ai_edge_quantizer import qtyping, quantizer, recipe_manager

from phipipe.backends.litert.layout import MODEL, copy_others
from phipipe.backends.litert.stored import read, verify
from phipipe.steps import Inputs, Params


def quantize(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["model"]``, the output of ``convert``, with weights as ``params`` say, and
    read back.

    Raises:
        StepFailed: a matrix is stored in another way than asked; it names the first.
    """
    group = params["group_size"]
    granularity = qtyping.QuantGranularity("CHANNELWISE" if group < 0 else f"BLOCKWISE_{group}")
    rules = recipe_manager.RecipeManager()
    add = (
        rules.add_dynamic_config if params["scheme"] == "dynamic" else rules.add_weight_only_config
    )
    add(
        ".*",
        qtyping.TFLOperationName.ALL_SUPPORTED,
        num_bits=params["bits"],
        granularity=granularity,
    )
    rounding = quantizer.Quantizer(str(inputs["model"] / MODEL), rules.get_quantization_recipe())
    rounding.quantize().export_model(str(out / MODEL))
    copy_others(inputs["model"], out)
    verify(read(inputs["model"] / MODEL), read(out / MODEL), params)
