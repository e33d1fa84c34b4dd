"""Conversion: a checkpoint to a ``.tflite`` in fp32, by litert-torch."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter
from litert_torch.generative.export_hf.core import export_lib
from litert_torch.generative.export_hf.core.exportable_module_config import ExportableModuleConfig

from phipipe.backends.litert.layout import MODEL, copy_others
from phipipe.backends.litert.stored import read, verify_floats
from phipipe.errors import StepFailed
from phipipe.models.staging import staged
from phipipe.steps import Inputs, Params


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to ``model.tflite`` in fp32 beside its tokenizer
    and config files.

    Raises:
        StepFailed: litert-torch wrote something else than fp32, or other lengths than asked.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        source = staged(inputs["source"], params["config_patch"], Path(scratch) / "model")
        _export(source, Path(scratch), params)
        shutil.move(Path(scratch) / MODEL, out / MODEL)
    copy_others(inputs["source"], out)
    verify_floats(read(out / MODEL))
    check_lengths(out / MODEL, params)


def _export(source: Path, work: Path, params: Params) -> None:
    """litert-torch's own export, cut where it would write a second tokenizer and quantize by
    default."""
    config = ExportableModuleConfig(
        model=str(source),
        output_dir=str(work),
        work_dir=str(work),
        prefill_lengths=[params["prefill_length"]],
        cache_length=params["context_length"],
        quantization_recipe=None,
        # no runtime reads them: they would cost an LM head for every part of a prompt
        prefill_logits=False,
        bundle_litert_lm=False,
    )
    loaded = export_lib.load_model(str(source), config, trust_remote_code=False)
    for module in loaded.model.modules():
        # Its factors would be chosen while running, which cannot be exported; loaded are the short
        # ones, with the scaling of attention that belongs to both.
        if getattr(module, "rope_type", None) == "longrope":
            module.rope_type = "default"
    config = export_lib.update_export_config(config, loaded)
    export_lib.export_text_prefill_decode_model(loaded, config, export_lib.ExportedModelArtifacts())


def check_lengths(model: Path, params: Params) -> None:
    """The model has the two signatures and the cache that ``params`` ask for.

    Raises:
        StepFailed: it has others.
    """
    interpreter = Interpreter(model_path=str(model), num_threads=1)
    signatures = sorted(interpreter.get_signature_list())
    prefill = f"prefill_{params['prefill_length']}"
    if signatures != ["decode", prefill]:
        raise StepFailed(
            f"litert-torch wrote the signatures {', '.join(signatures)} instead of decode and "
            f"{prefill}"
        )
    cache = int(interpreter.get_signature_runner("decode").get_input_details()["mask"]["shape"][-1])
    if cache != params["context_length"]:
        raise StepFailed(
            f"litert-torch made a cache of {cache} tokens instead of {params['context_length']}"
        )
