"""Compilation: a stage's graphs in fixed point to contexts for one chip."""

from __future__ import annotations

import contextlib
from pathlib import Path

import onnx

from phipipe import progress
from phipipe.backends.qnn import htp
from phipipe.backends.qnn.stages import LENGTHS, facts_of, name_of, write_facts
from phipipe.errors import StepFailed
from phipipe.steps import Inputs, Params


def compile(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the graphs of ``params["stage"]`` in ``inputs["model"]`` as contexts for
    ``params["soc"]``, each whole on the NPU; and static.json.

    With ``params["shared"]`` the graphs for prompts and for single tokens share one binary and its
    weights.

    Raises:
        StepFailed: a graph falls apart into several partitions, or the compiler refuses it.
    """
    source, soc, shared = inputs["model"], params["soc"], params["shared"]
    sessions = []  # all of one binary stay open until it is written
    target = out.absolute()
    for kind in progress.each(LENGTHS, "graphs"):
        name = name_of(params["stage"], kind)
        last = shared and kind == LENGTHS[-1]
        entries = _entries(target / name, shared=shared, last=last)
        settings = {"enable_htp_weight_sharing": "1"} if shared else {}
        # onnxruntime calls a context by a hash of the path that its graph was opened by
        with contextlib.chdir(source):
            session = htp.session(Path(name), soc, entries, settings)
        _check_context(out / name)
        if shared:
            sessions.append(session)
        del session
    write_facts(out, facts_of(source) | {"soc": dict(soc), "shared": shared})


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
