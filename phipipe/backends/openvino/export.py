"""A checkpoint as an OpenVINO graph, by optimum, in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import openvino
import torch
from optimum.exporters.openvino import convert as exporter
from optimum.exporters.openvino.__main__ import main_export
from optimum.intel.openvino.configuration import OVConfig

from phipipe.backends.openvino import graph
from phipipe.backends.openvino.files import MODEL
from phipipe.backends.openvino.patches import replaced
from phipipe.models import checkpoints, tensors
from phipipe.models.staging import copy_beside, staged
from phipipe.steps import Params

Change = Callable[[openvino.Model], openvino.Model]


def export(
    source: Path, out: Path, precision: str, patch: Params, change: Change | None = None
) -> None:
    """Export the checkpoint with the files that ship beside it; ``change`` has the graph before it
    is written."""
    save = exporter.save_model

    def changed(model: openvino.Model, path: str, compress_to_fp16: bool = True) -> None:
        is_ours = Path(path).name == MODEL  # the tokenizer's graphs stay as they are
        save(change(model) if change and is_ours else model, path, compress_to_fp16)

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        source = staged(source, patch, Path(scratch) / "model")
        with graph.one_thread(), replaced(exporter, {"save_model": changed}):
            _export(source, out, precision)
        # transformers 5 rewrites them in a layout that other tools misread
        copy_beside(source, out, checkpoints.loose_files(source))
    for path in sorted(out.glob("*.xml")):
        graph.number_nodes(path)


def _export(source: Path, out: Path, precision: str) -> None:
    """Run optimum; a checkpoint in bf16 leaves a graph in bf16 where fp16 was asked for.

    ``dtype`` "auto" leaves alone what the 16-bit linears do not cover; no dtype at all means int8
    above 1 G weights. Weights that are loaded in the dtype they are stored in stay in the
    checkpoint's files, which the graph shares: cast, the whole model would lie in memory.
    """
    stored = torch.bfloat16 if tensors.dtypes(source) == {"BF16"} else torch.float16
    main_export(
        str(source),
        output=out,
        task="text-generation-with-past",
        framework="pt",
        library_name="transformers",
        ov_config=OVConfig(dtype="fp32" if precision == "fp32" else "auto"),
        model_loading_kwargs={"torch_dtype": torch.float32 if precision == "fp32" else stored},
        convert_tokenizer=True,
        local_files_only=True,
        trust_remote_code=False,
        stateful=True,
    )
