"""Running static graphs: prompts in chunks, answers token by token, over a cache that slides.

The folder says in ``static.json`` how long its graphs are, how its caches are stored, and for what processor they
were compiled. Graphs that were not compiled run on the CPU, others on Qualcomm's HTP or, without one, its emulator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe.errors import StepFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FACTS = "static.json"
EMBEDDING = "embedding.onnx"
PARTS = ("decoder", "head")
LENGTHS = ("prompt", "token")


def name_of(part: str, length: str) -> str:
    """The file of ``part`` ("decoder" or "head") for prompts or for single tokens."""
    return f"{part}_{length}.onnx"


def facts_of(folder: Path) -> dict[str, Any]:
    """What ``static.json`` says: prompt_length, context_length, caches, layers, ends, soc (None: not compiled)."""
    found: dict[str, Any] = json.loads((folder / FACTS).read_text("utf-8"))
    return found


def cpu(path: Path) -> Any:
    """A session of onnxruntime on this CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; the exception carries the message anyway
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def htp(path: Path, soc: Mapping[str, Any], entries: Mapping[str, str], settings: Mapping[str, str]) -> Any:
    """A session on Qualcomm's HTP (emulated where there is none), with no node on the CPU.

    ``soc``: model and arch, Qualcomm's numbers. ``entries`` are session entries, ``settings`` provider options.

    Raises:
        StepFailed: the graph cannot be placed there whole, or cannot be loaded; with onnxruntime's words.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    chosen = {"backend_path": _library(), "soc_model": str(soc["model"]), "htp_arch": str(soc["arch"])}
    chosen |= {"htp_graph_finalization_optimization_mode": "3", **settings}

    def session(entries: Mapping[str, str]) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_provider_for_devices([_device()], chosen)
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        return onnxruntime.InferenceSession(str(path), options)

    try:
        return session({"session.disable_cpu_ep_fallback": "1", **entries})
    except (errors.Fail, errors.InvalidGraph, errors.EPFail, errors.NotImplemented, errors.RuntimeException) as error:
        if "fallback to CPU EP" not in str(error):
            raise StepFailed(f"`{path.name}` does not run on the HTP: {error}") from None
    parts = session({"session.record_ep_graph_assignment_info": "1"}).get_provider_graph_assignment_info()
    kinds = {node.op_type for part in parts if part.ep_name != "QNN" for node in part.get_nodes()}
    loose = ", ".join(sorted(kinds - {"QuantizeLinear", "DequantizeLinear"}))  # those at the border stay there anyway
    raise StepFailed(f"`{path.name}` falls apart into several partitions; not on the NPU: {loose}")


def _library() -> str:
    import onnxruntime_qnn

    return str(onnxruntime_qnn.get_qnn_htp_path())


def _device() -> Any:
    """onnxruntime's handle of the HTP; the provider is registered once in a process."""
    import onnxruntime
    import onnxruntime_qnn

    def found() -> Any:
        return next((device for device in onnxruntime.get_ep_devices() if device.ep_name == "QNN"), None)

    if found() is None:
        onnxruntime.register_execution_provider_library("QNN", onnxruntime_qnn.get_library_path())
    return found()


def emulated() -> bool:
    """Whether this machine has no such NPU, and onnxruntime-qnn emulates it."""
    return str(_device().device.type.name) != "NPU"


class Caches:
    """Keys and values of all layers, ``context`` positions each, newest last; and which positions hold a token."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        import numpy as np

        heads, size, context = facts["kv_heads"], facts["head_size"], facts["context_length"]
        kind = np.dtype(facts["caches"])
        self.keys = [np.zeros((heads, 1, size, context), kind) for _ in range(facts["layers"])]
        self.values = [np.zeros((heads, 1, context, size), kind) for _ in range(facts["layers"])]
        self.seen = np.zeros((1, context), np.int32)
        self.position = 0

    def feeds(self, count: int, length: int) -> dict[str, Any]:
        """Inputs for ``count`` new tokens in a graph of ``length``: what is left of the caches when they slide."""
        import numpy as np

        new = np.zeros((1, length), np.int32)
        new[0, :count] = 1
        self.seen = np.concatenate([self.seen[:, length:], new], -1)
        positions = np.zeros((1, length), np.int32)
        positions[0, :count] = np.arange(self.position, self.position + count)
        self.position += count
        feeds: dict[str, Any] = {"position_ids": positions, "attention_mask": self.seen}
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            feeds[f"past_key_{i}"] = np.ascontiguousarray(keys[..., length:])
            feeds[f"past_value_{i}"] = np.ascontiguousarray(values[:, :, length:])
        return feeds

    def take(self, feeds: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Append the new positions that a graph has ``made``."""
        import numpy as np

        for i in range(len(self.keys)):
            self.keys[i] = np.concatenate([feeds[f"past_key_{i}"], made[f"present_key_{i}"]], -1)
            self.values[i] = np.concatenate([feeds[f"past_value_{i}"], made[f"present_value_{i}"]], -2)


class Session:
    """``Runtime`` over a folder of static graphs."""

    def __init__(self, folder: Path) -> None:
        self.facts = facts_of(folder)
        if self.facts["soc"] and self.facts["shared"] and emulated():
            raise StepFailed(
                "the emulator cannot load graphs that share their weights",
                hint="run this package on the device; its fidelity was measured on the same graphs compiled apart",
            )
        self.pipeline = "Qualcomm's HTP emulator" if self.facts["soc"] and emulated() else "this machine"
        self._embedding = cpu(folder / EMBEDDING)
        self._sessions = {
            (part, length): self._open(folder / name_of(part, length)) for part in PARTS for length in LENGTHS
        }

    def _open(self, path: Path) -> Any:
        return htp(path, self.facts["soc"], {}, {}) if self.facts["soc"] else cpu(path)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        import numpy as np

        caches, step = Caches(self.facts), self.facts["prompt_length"]
        return np.concatenate([self.run(caches, tokens[i : i + step]) for i in range(0, len(tokens), step)])

    def decode(self, tokens: Sequence[int], prompt: int) -> npt.NDArray[np.float32]:
        """Logits of ``tokens``, the first ``prompt`` of them in chunks, the others one by one."""
        import numpy as np

        caches, step = Caches(self.facts), self.facts["prompt_length"]
        made = [self.run(caches, tokens[i : min(i + step, prompt)]) for i in range(0, prompt, step)]
        return np.concatenate([*made, *(self.run(caches, [token]) for token in tokens[prompt:])])

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        caches, step = Caches(self.facts), self.facts["prompt_length"]
        for i in range(0, len(prompt), step):
            logits = self.run(caches, prompt[i : i + step])
        taken = -(-len(prompt) // step) * step  # the last chunk's empty places count: they are in the caches, too
        for _ in range(min(limit, self.facts["context_length"] - taken)):
            token = int(logits[-1].argmax())
            yield token
            if token in self.facts["ends"]:
                return
            logits = self.run(caches, [token])

    def run(self, caches: Caches, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits [len(tokens), vocabulary] after what is in ``caches``, which then hold these, too."""
        made, _ = self.trace(caches, tokens)
        length = "token" if len(tokens) == 1 else "prompt"
        logits: npt.NDArray[np.float32]
        (logits,) = self._sessions["head", length].run(["logits"], {"hidden_states": made["hidden_states"]})
        return logits[0, : len(tokens)]

    def trace(self, caches: Caches, tokens: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(what the decoder made, what it was fed) for ``tokens``; one token takes the graph for single tokens."""
        import numpy as np

        kind, length = ("token", 1) if len(tokens) == 1 else ("prompt", self.facts["prompt_length"])
        ids = np.zeros((1, length), np.int32)
        ids[0, : len(tokens)] = tokens
        feeds = caches.feeds(len(tokens), length)
        feeds["inputs_embeds"] = self._embedding.run(None, {"input_ids": ids})[0]
        session = self._sessions["decoder", kind]
        names = [output.name for output in session.get_outputs()]
        made = dict(zip(names, session.run(names, feeds), strict=True))
        caches.take(feeds, made)
        return made, feeds

    def close(self) -> None:
        self._sessions.clear()
