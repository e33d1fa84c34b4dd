"""Graphs on Qualcomm's HTP, or on its emulator where there is none."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from phipipe import hardware
from phipipe.errors import StepFailed

REFUSALS = (
    errors.Fail,
    errors.InvalidGraph,
    errors.EPFail,
    errors.NotImplemented,
    errors.RuntimeException,
)


def session(
    path: Path, soc: Mapping[str, int], entries: Mapping[str, str], settings: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    """A session on Qualcomm's HTP (emulated where there is none), with no node on the CPU.

    ``soc``: model and arch, Qualcomm's numbers. ``entries`` are session entries, ``settings``
    provider options.

    Raises:
        StepFailed: the graph cannot be placed there whole, or cannot be loaded; with onnxruntime's
            words.
    """
    share = os.environ.get("OMP_NUM_THREADS")
    if share and emulated():
        # ten threads of the emulator spin: beside another one it takes three times as long
        hardware.settle(int(share))
    chosen = {
        "backend_path": str(_qnn().get_qnn_htp_path()),
        "soc_model": str(soc["model"]),
        "htp_arch": str(soc["arch"]),
        "htp_graph_finalization_optimization_mode": "3",
        **settings,
    }
    try:
        return _opened(path, chosen, {"session.disable_cpu_ep_fallback": "1", **entries})
    except REFUSALS as error:
        if "fallback to CPU EP" not in str(error):
            raise StepFailed(f"`{path.name}` does not run on the HTP: {error}") from None
    raise StepFailed(
        f"`{path.name}` falls apart into several partitions; not on the NPU: "
        f"{', '.join(_left_out(path, chosen))}"
    )


def _opened(
    path: Path, chosen: Mapping[str, str], entries: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # nothing runs on the CPU, but waiting threads would spin there
    options.intra_op_num_threads = 1
    options.add_provider_for_devices([_device()], dict(chosen))
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(str(path), options)


def _left_out(path: Path, chosen: Mapping[str, str]) -> list[str]:
    """Operators of the graph that the HTP does not take."""
    graph = _opened(path, chosen, {"session.record_ep_graph_assignment_info": "1"})
    parts = graph.get_provider_graph_assignment_info()
    kinds = {node.op_type for part in parts if part.ep_name != "QNN" for node in part.get_nodes()}
    # these, at the border, stay there anyway
    return sorted(kinds - {"QuantizeLinear", "DequantizeLinear"})


def _qnn() -> ModuleType:
    """onnxruntime-qnn, which is not there on every system: graphs that were not compiled run
    without."""
    return importlib.import_module("onnxruntime_qnn")


def _device() -> onnxruntime.OrtEpDevice:
    """onnxruntime's handle of the HTP; the provider is registered once in a process."""
    device = _registered()
    if device is None:
        onnxruntime.register_execution_provider_library("QNN", _qnn().get_library_path())
        device = _registered()
    return device


def _registered() -> onnxruntime.OrtEpDevice | None:
    devices = onnxruntime.get_ep_devices()
    return next((device for device in devices if device.ep_name == "QNN"), None)


def emulated() -> bool:
    """Whether this machine has no such NPU, and onnxruntime-qnn emulates it."""
    return str(_device().device.type.name) != "NPU"
