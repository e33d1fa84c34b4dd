"""Weights of an OpenVINO graph to 8 or 4 bits with NNCF, one matrix in memory at a time."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import nncf
import numpy as np
import openvino
from nncf.quantization.algorithms.weight_compression import openvino_backend as nncf_backend

from phipipe.algorithms.lattice import Lattice
from phipipe.backends.arrays import Array
from phipipe.backends.openvino import rounding, session
from phipipe.backends.openvino.mapped import mapped
from phipipe.backends.openvino.patches import replaced
from phipipe.steps import Params

_LARGE_BYTES = 2**16


def compress(
    model: openvino.Model, params: Params, calibration: Path | None, learned: Lattice | None = None
) -> openvino.Model:
    """``model`` as NNCF leaves it, for the ``params`` of step ``quantize``; ``calibration``: the
    windows of tokens; ``learned``: the codes of all matrices, rounded already.

    Every argument that matters is explicit, since NNCF's defaults depend on one another.
    """
    kind = "SYM" if params["symmetric"] else "ASYM"
    widths = params.get("widths", {})
    with mapped(widths, kind, learned) if widths else contextlib.nullcontext():
        return _described(_compressed(model, params, kind, calibration))


def _compressed(
    model: openvino.Model, params: Params, kind: str, calibration: Path | None
) -> openvino.Model:
    mode = nncf.CompressWeightsMode[f"INT{params['bits']}_{kind}"]
    if params["bits"] == 8:
        return nncf.compress_weights(model, mode=mode, ratio=1.0, group_size=-1)
    dataset, count = _dataset(calibration) if calibration else (None, 128)
    fallback = nncf.quantization.advanced_parameters.GroupSizeFallbackMode.ERROR
    return nncf.compress_weights(
        model,
        mode=mode,
        ratio=params["ratio"],
        group_size=params["group_size"],
        all_layers=params["all_layers"],
        dataset=dataset,
        sensitivity_metric=nncf.SensitivityMetric(params["sensitivity"]),
        subset_size=count,
        awq=params["awq"],
        scale_estimation=params["scale_estimation"],
        gptq=params["gptq"],
        lora_correction=False,
        backup_mode=nncf.BackupMode(params["backup"]),
        advanced_parameters=nncf.AdvancedCompressionParameters(group_size_fallback_mode=fallback),
    )


def _dataset(calibration: Path) -> tuple[nncf.Dataset, int]:
    """The calibration windows as model inputs, and their number."""
    tokens = np.load(calibration / "tokens.npy", allow_pickle=False)
    return nncf.Dataset([session.feeds(window) for window in tokens]), len(tokens)


def _described(model: openvino.Model) -> openvino.Model:
    """What optimum does after compressing: quantized models leave the cache's precision to the
    runtime."""
    options = (
        model.get_rt_info("runtime_options").value if model.has_rt_info("runtime_options") else {}
    )
    if "KV_CACHE_PRECISION" in options:
        options.pop("KV_CACHE_PRECISION")
        model.set_rt_info(options, "runtime_options")
    model.set_rt_info(nncf.__version__, ["optimum", "nncf_version"])
    return model


class _Ranking(nncf_backend.OVTensorWeightCompressionAlgoBackend):  # type: ignore[misc]
    """What NNCF asks for weights when it ranks matrices; bf16 is fp16 here, too."""

    def get_weight(self, *given: object) -> nncf.Tensor:
        return rounding.in_halves(super().get_weight(*given))


@contextlib.contextmanager
def lean(folder: Path) -> Iterator[None]:
    """Have NNCF read bf16 weights as fp16, round some rows at a time, and keep the large constants
    that it makes in a nameless file in ``folder``.

    Memory would hold the whole result otherwise. A graph made inside is of use inside only.
    """
    make = nncf_backend.create_ov_const_from_tensor
    mapped: list[Array] = []

    def moved(
        tensor: nncf.Tensor, dtype: openvino.Type, name: str | None = None
    ) -> openvino.op.Constant:
        constant = make(tensor, dtype, name)
        if constant.get_byte_size() < _LARGE_BYTES:
            return constant
        mapped.append(_written(constant, stream))
        shape, kind = constant.get_output_shape(0), constant.get_element_type()
        values = openvino.Tensor(mapped[-1], shape, kind)
        return openvino.opset13.constant(values, name=name, shared_memory=True)

    functions: dict[str, object] = {
        make.__name__: moved,
        nncf_backend.OVTensorWeightCompressionAlgoBackend.__name__: _Ranking,
        "compress_weight": rounding.in_pieces(nncf_backend.compress_weight),
    }
    with tempfile.TemporaryFile(dir=folder) as stream, replaced(nncf_backend, functions):
        yield
        mapped.clear()


def _written(constant: openvino.op.Constant, stream: IO[bytes]) -> Array:
    """The values of ``constant`` at the end of ``stream``, mapped; of 4 bits, two in a byte."""
    values = constant.data
    start = stream.seek(0, 2)
    stream.write(values.reshape(-1).view(np.uint8).data)
    stream.flush()
    return np.memmap(stream, values.dtype, "r+", start, values.shape)
