"""Running static graphs: prompts in chunks, answers token by token, over a cache that slides.

The folder says in ``static.json`` how long its graphs are, into how many parts the layers are
split, how its caches are stored, and for what processor they were compiled. Graphs that were not
compiled run on the CPU, others on Qualcomm's HTP or, without one, its emulator. A stage is one part
of the layers, or the LM head: a graph for prompts, one for single tokens, and their weights, which
lie in one file beside them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe import hardware
from phipipe.errors import StepFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FACTS = "static.json"
EMBEDDING = "embedding.onnx"
LENGTHS = ("prompt", "token")


def stages(facts: Mapping[str, Any]) -> dict[str, range]:
    """Names of what runs after the embedding, in that order, and the layers of each: "decoder_0" …,
    then "head"."""
    from phipipe.backends.qnn.graph import ranges_of

    parts = {
        f"decoder_{i}": layers
        for i, layers in enumerate(ranges_of(facts["layers"], facts["parts"]))
    }
    return parts | {"head": range(0)}


def name_of(stage: str, length: str) -> str:
    """The file of ``stage`` for prompts or for single tokens."""
    return f"{stage}_{length}.onnx"


def data_of(stage: str) -> str:
    """The file with the weights of both graphs of ``stage``, or of the embedding."""
    return f"{stage}.data"


def facts_of(folder: Path) -> dict[str, Any]:
    """What ``static.json`` says: prompt_length, context_length, caches, layers, parts, ends, soc
    (or None)."""
    found: dict[str, Any] = json.loads((folder / FACTS).read_text("utf-8"))
    return found


def cpu(model: Path | bytes, folder: Path | None = None, *, plain: bool = False) -> Any:
    """A session of onnxruntime on this CPU; it maps the weights, so that they take no memory of
    their own.

    ``model`` is a file, or a serialized graph whose data files lie in ``folder``. ``plain``: every
    value is computed as the graph says, with nothing fused.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; the exception carries the message anyway
    options.add_session_config_entry(
        "session.disable_prepacking", "1"
    )  # packed weights would be copies
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def htp(
    path: Path, soc: Mapping[str, Any], entries: Mapping[str, str], settings: Mapping[str, str]
) -> Any:
    """A session on Qualcomm's HTP (emulated where there is none), with no node on the CPU.

    ``soc``: model and arch, Qualcomm's numbers. ``entries`` are session entries, ``settings``
    provider options.

    Raises:
        StepFailed: the graph cannot be placed there whole, or cannot be loaded; with onnxruntime's
            words.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    if (share := os.environ.get("OMP_NUM_THREADS")) and emulated():
        hardware.settle(
            int(share)
        )  # ten threads of the emulator spin: beside another one it takes three times as long
    chosen = {
        "backend_path": _library(),
        "soc_model": str(soc["model"]),
        "htp_arch": str(soc["arch"]),
    }
    chosen |= {"htp_graph_finalization_optimization_mode": "3", **settings}

    def session(entries: Mapping[str, str]) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = (
            1  # nothing runs on the CPU, but waiting threads would spin there
        )
        options.add_provider_for_devices([_device()], chosen)
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        return onnxruntime.InferenceSession(str(path), options)

    try:
        return session({"session.disable_cpu_ep_fallback": "1", **entries})
    except (
        errors.Fail,
        errors.InvalidGraph,
        errors.EPFail,
        errors.NotImplemented,
        errors.RuntimeException,
    ) as error:
        if "fallback to CPU EP" not in str(error):
            raise StepFailed(f"`{path.name}` does not run on the HTP: {error}") from None
    parts = session(
        {"session.record_ep_graph_assignment_info": "1"}
    ).get_provider_graph_assignment_info()
    kinds = {node.op_type for part in parts if part.ep_name != "QNN" for node in part.get_nodes()}
    loose = ", ".join(
        sorted(kinds - {"QuantizeLinear", "DequantizeLinear"})
    )  # those at the border stay there anyway
    raise StepFailed(f"`{path.name}` falls apart into several partitions; not on the NPU: {loose}")


def _library() -> str:
    import onnxruntime_qnn

    return str(onnxruntime_qnn.get_qnn_htp_path())


def _device() -> Any:
    """onnxruntime's handle of the HTP; the provider is registered once in a process."""
    import onnxruntime
    import onnxruntime_qnn

    def found() -> Any:
        return next(
            (device for device in onnxruntime.get_ep_devices() if device.ep_name == "QNN"), None
        )

    if found() is None:
        onnxruntime.register_execution_provider_library("QNN", onnxruntime_qnn.get_library_path())
    return found()


def emulated() -> bool:
    """Whether this machine has no such NPU, and onnxruntime-qnn emulates it."""
    return str(_device().device.type.name) != "NPU"


class Caches:
    """Keys and values of ``layers``, ``context`` positions each, newest last; and which positions
    hold a token."""

    def __init__(self, facts: Mapping[str, Any], layers: range) -> None:
        import numpy as np

        heads, size, context = facts["kv_heads"], facts["head_size"], facts["context_length"]
        kind = np.dtype(facts["caches"])
        self.keys = {i: np.zeros((heads, 1, size, context), kind) for i in layers}
        self.values = {i: np.zeros((heads, 1, context, size), kind) for i in layers}
        self.seen = np.zeros((1, context), np.int32)
        self.position = 0

    def feeds(self, count: int, length: int) -> dict[str, Any]:
        """Inputs for ``count`` new tokens in a graph of ``length``: what is left of the caches when
        they slide."""
        import numpy as np

        new = np.zeros((1, length), np.int32)
        new[0, :count] = 1
        self.seen = np.concatenate([self.seen[:, length:], new], -1)
        positions = np.zeros((1, length), np.int32)
        positions[0, :count] = np.arange(self.position, self.position + count)
        self.position += count
        feeds: dict[str, Any] = {"position_ids": positions, "attention_mask": self.seen}
        for i in self.keys:
            feeds[f"past_key_{i}"] = np.ascontiguousarray(self.keys[i][..., length:])
            feeds[f"past_value_{i}"] = np.ascontiguousarray(self.values[i][:, :, length:])
        return feeds

    def take(self, values: Mapping[str, Any]) -> None:
        """Append the new positions: ``values`` has what graphs were fed (``past_…``) and have made
        (``present_…``)."""
        import numpy as np

        for i in self.keys:
            self.keys[i] = np.concatenate([values[f"past_key_{i}"], values[f"present_key_{i}"]], -1)
            self.values[i] = np.concatenate(
                [values[f"past_value_{i}"], values[f"present_value_{i}"]], -2
            )


def apply(session: Any, values: dict[str, Any]) -> None:
    """Run one graph on those of ``values`` that it reads, and add what it makes."""
    names = [output.name for output in session.get_outputs()]
    made = session.run(names, {entry.name: values[entry.name] for entry in session.get_inputs()})
    values |= dict(zip(names, made, strict=True))


class Session:
    """``Runtime`` over a folder of static graphs; each is opened when it is needed first."""

    def __init__(self, folder: Path) -> None:
        self.facts = facts_of(folder)
        if self.facts["soc"] and self.facts["shared"] and emulated():
            raise StepFailed(
                "the emulator cannot load graphs that share their weights",
                hint="run this package on the device; its fidelity was measured on the same "
                "graphs compiled apart",
            )
        self.pipeline = (
            "Qualcomm's HTP emulator" if self.facts["soc"] and emulated() else "this machine"
        )
        self._folder = folder
        self._embedding = cpu(folder / EMBEDDING)
        self._sessions: dict[str, Any] = {}

    def _open(self, name: str) -> Any:
        if name not in self._sessions:
            path, soc = self._folder / name, self.facts["soc"]
            self._sessions[name] = htp(path, soc, {}, {}) if soc else cpu(path)
        return self._sessions[name]

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        import numpy as np

        caches, step = self._caches(), self.facts["prompt_length"]
        return np.concatenate(
            [self.run(caches, tokens[i : i + step]) for i in range(0, len(tokens), step)]
        )

    def decode(self, tokens: Sequence[int], prompt: int) -> npt.NDArray[np.float32]:
        """Logits of ``tokens``, the first ``prompt`` of them in chunks, the others one by one."""
        import numpy as np

        caches, step = self._caches(), self.facts["prompt_length"]
        made = [self.run(caches, tokens[i : min(i + step, prompt)]) for i in range(0, prompt, step)]
        return np.concatenate([*made, *(self.run(caches, [token]) for token in tokens[prompt:])])

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        caches, step = self._caches(), self.facts["prompt_length"]
        for i in range(0, len(prompt), step):
            logits = self.run(caches, prompt[i : i + step])
        taken = (
            -(-len(prompt) // step) * step
        )  # the last chunk's empty places count: they are in the caches, too
        for _ in range(min(limit, self.facts["context_length"] - taken)):
            token = int(logits[-1].argmax())
            yield token
            if token in self.facts["ends"]:
                return
            logits = self.run(caches, [token])

    def _caches(self) -> Caches:
        return Caches(self.facts, range(self.facts["layers"]))

    def run(self, caches: Caches, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits [len(tokens), vocabulary] after what is in ``caches``, which then hold these, too.

        One token takes the graphs for single tokens.
        """
        import numpy as np

        kind, length = ("token", 1) if len(tokens) == 1 else ("prompt", self.facts["prompt_length"])
        values = caches.feeds(len(tokens), length)
        values["input_ids"] = np.zeros((1, length), np.int32)
        values["input_ids"][0, : len(tokens)] = tokens
        apply(self._embedding, values)
        for stage in stages(self.facts):
            apply(self._open(name_of(stage, kind)), values)
        caches.take(values)
        logits: npt.NDArray[np.float32] = values["logits"]
        return logits[0, : len(tokens)]

    def close(self) -> None:
        self._sessions.clear()
