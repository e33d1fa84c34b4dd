"""Conversion: a checkpoint to an unquantized ONNX folder, by onnxruntime-genai's own builder."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto
from onnxruntime_genai import __version__ as version
from onnxruntime_genai.models import builder

from phipipe.backends.onnxruntime import graph, links, patches, positions
from phipipe.backends.onnxruntime.layout import CONFIG, LM_HEAD, MODEL
from phipipe.errors import StepFailed
from phipipe.models import mapped
from phipipe.models.staging import staged
from phipipe.steps import Inputs, Json, Params


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, to an unquantized ONNX folder that
    onnxruntime-genai loads.

    ``params``: config_patch; provider ("cpu") and io_dtype ("fp32", or "fp16"), both the builder's
    own words; linked (false): whether large weights stay in the checkpoint, for ``quantize`` to
    read them there; rotary (none): the kind of scaling for which transformers' tables are taken.

    Raises:
        StepFailed: the builder failed, or what it left is incomplete.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        source = inputs["source"]
        if params["config_patch"]:
            source = staged(source, params["config_patch"], Path(scratch) / "source")
        provider, dtype = params.get("provider", "cpu"), params.get("io_dtype", "fp32")
        linked = bool(params.get("linked"))
        rotary = params.get("rotary")
        with positions.scaled(source, rotary) if rotary else contextlib.nullcontext():
            _build(source, out, Path(scratch) / "cache", provider, dtype, linked)
        _normalise(out)
        check(out, provider, dtype, source if linked else None)


def _build(source: Path, out: Path, cache: Path, provider: str, dtype: str, linked: bool) -> None:
    """Run the builder in this process. Its structured options refuse unknown keys; the older ones
    ignore them."""
    target = {
        "quant_config": {"io_dtype": dtype, "weights": {"type": "none"}},
        "attention": {"kv_cache": {"windowed": False}},
    }
    where = (None, str(source), str(out), dtype, provider, str(cache))
    # hf_token=false: it would otherwise look for the user's token, although everything is local.
    options = builder.parse_extra_options(
        *where, ["hf_token=false"], builder_config_version=2, target_options=target
    )
    with patches.lean_builder(mapped.Checkpoint(source), linked=linked):
        builder.create_model(*where, **options)


def _normalise(folder: Path) -> None:
    """Take out what depends on the machine: the builder signs with the git commit of any enclosing
    repository."""
    model = graph.load(folder)
    model.producer_version = version
    graph.save(model, folder)


def check(folder: Path, provider: str, dtype: str, checkpoint: Path | None) -> None:
    """The conversion is whole, in ``dtype``, and its config is one that onnxruntime-genai serves
    with ``provider``. Where it is linked, ``checkpoint`` has its weights.

    Raises:
        StepFailed: names what is missing or different.
    """
    model = graph.load(folder)
    if checkpoint:
        links.check(folder, model, checkpoint)
    else:
        graph.check_files(folder, model)
    _check_linears(model, dtype)
    for name in (CONFIG, "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise StepFailed(f"onnxruntime-genai's builder wrote no `{name}`")
    _check_config(json.loads((folder / CONFIG).read_text("utf-8"))["model"], provider)


def _check_linears(model: ModelProto, dtype: str) -> None:
    quantized = [n.name for n in model.graph.node if n.op_type in graph.QUANTIZED]
    if quantized:
        raise StepFailed(f"the conversion is not {dtype}: `{quantized[0]}` is quantized")
    kinds = {linear.name: linear.dtype for linear in graph.linears(model)}
    if LM_HEAD not in kinds:
        raise StepFailed(f"the conversion has no `{LM_HEAD}`")
    if other := [name for name, kind in kinds.items() if kind != dtype]:
        raise StepFailed(f"the conversion is not {dtype}: `{other[0]}` is {kinds[other[0]]}")


def _check_config(config: Mapping[str, Json], provider: str) -> None:
    if not config.get("context_length") or config.get("eos_token_id") in (None, []):
        raise StepFailed(f"`{CONFIG}` names no context length or no end-of-text token")
    decoder = config["decoder"]
    providers = [name for entry in decoder["session_options"]["provider_options"] for name in entry]
    expected = [] if provider == "cpu" else [provider]
    if decoder["filename"] != MODEL or providers != expected:
        raise StepFailed(f"`{CONFIG}` is not for `{MODEL}` with the provider `{provider}`")
