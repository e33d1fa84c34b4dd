"""Compilation: graphs in fixed point to contexts for one chip."""

from __future__ import annotations

from pathlib import Path

import onnx

from phipipe import progress
from phipipe.backends.qnn import htp
from phipipe.backends.qnn.pipeline import describe
from phipipe.backends.qnn.stages import LENGTHS, copy_rest, facts_of, name_of, stages
from phipipe.errors import StepFailed
from phipipe.steps import Inputs, Params


def compile(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the graphs of ``inputs["model"]`` as contexts for ``params["soc"]``, each whole on the
    NPU.

    With ``params["shared"]`` the graphs for prompts and for single tokens share one binary and its
    weights.

    Raises:
        StepFailed: a graph falls apart into several partitions, or the compiler refuses it.
    """
    source, soc, shared = inputs["model"], params["soc"], params["shared"]
    facts = facts_of(source)
    for stage in progress.each(list(stages(facts)), "parts"):
        sessions = []  # all of one binary stay open until it is written
        for kind in LENGTHS:
            name = name_of(stage, kind)
            last = shared and kind == LENGTHS[-1]
            entries = _entries(out / name, shared=shared, last=last)
            settings = {"enable_htp_weight_sharing": "1"} if shared else {}
            sessions.append(htp.session(source / name, soc, entries, settings))
            _check_context(out / name)
        del sessions
    copy_rest(source, out)
    describe(out, facts | {"soc": dict(soc), "shared": shared})


def _entries(path: Path, *, shared: bool, last: bool) -> dict[str, str]:
    """Session entries that write the context of a graph to ``path``; the ``last`` of those that
    share a binary closes it."""
    entries = {
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": str(path),
    }
    if shared:
        entries["ep.share_ep_contexts"] = "1"
    if last:
        entries["ep.stop_share_ep_contexts"] = "1"
    return entries


def _check_context(path: Path) -> None:
    """One context holds the whole graph, and its binary is there.

    Raises:
        StepFailed: names the operators that are not in it.
    """
    if not path.is_file():
        raise StepFailed(f"onnxruntime-qnn wrote no `{path.name}`")
    nodes = list(onnx.load(str(path), load_external_data=False).graph.node)
    outside = sorted({node.op_type for node in nodes if node.op_type != "EPContext"})
    if outside or len(nodes) != 1:
        raise StepFailed(
            f"`{path.name}` fell apart into {len(nodes)} nodes; not on the NPU: "
            f"{', '.join(outside)}"
        )
