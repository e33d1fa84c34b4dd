"""What calibration text does to static graphs: the range of every value, with one stage in memory
at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from phipipe.backends.qnn.session import Caches, Values, apply, cpu
from phipipe.backends.qnn.stages import EMBEDDING, LENGTHS, facts_of, name_of, stages
from phipipe.errors import StepFailed

DECODED = 16  # tokens of each calibration window that go through the graphs for single tokens
Extent = tuple[float, float]  # the lowest and the highest that was seen
Scale = tuple[float, int]  # scale, zero point


class Reading:
    """Windows of text on their way through the stages of the float graphs in ``folder``.

    ``windows`` is [n, tokens]. Between two stages only what passes from one to the next is kept, in
    float32: as many numbers as there are tokens times the model's width. A stage's caches live as
    long as its window is read.

    Raises:
        StepFailed: the windows are too short to reach both graphs.
    """

    def __init__(self, folder: Path, windows: npt.NDArray[np.int32]) -> None:
        self.folder, self.facts = folder, facts_of(folder)
        step = self.facts["prompt_length"]
        chunks = (min(windows.shape[1], self.facts["context_length"]) - DECODED) // step
        if chunks < 1 or not len(windows):
            given = f"{len(windows)} windows of {windows.shape[1]} tokens"
            raise StepFailed(
                f"the calibration text is too short: {given}; prompts have {step}",
                hint=f"set `calibrate.window` to {step + DECODED} or more, and give a longer text",
            )
        self._lengths = [step] * chunks + [1] * DECODED
        starts = [sum(self._lengths[:i]) for i in range(len(self._lengths))]
        embedding = cpu(folder / EMBEDDING)
        self._border: list[list[Values]] = []
        for window in windows:
            values: list[Values] = [
                {"input_ids": window[None, i : i + n]}
                for i, n in zip(starts, self._lengths, strict=True)
            ]
            for value in values:
                apply(embedding, value)
            self._border.append(values)

    def through(self, stage: str) -> dict[str, dict[str, Extent]]:
        """Read everything with the next ``stage``: by length ("prompt", "token") and value, what
        was seen."""
        layers = stages(self.facts)[stage]
        paths = {kind: self.folder / name_of(stage, kind) for kind in LENGTHS}
        sessions = {kind: _watched(path) for kind, path in paths.items()}
        (border, *_) = [output.name for output in sessions["token"].get_outputs()]
        seen: dict[str, dict[str, Extent]] = {kind: {} for kind in paths}
        for window in self._border:
            caches = Caches(self.facts, layers)
            for i, length in enumerate(self._lengths):
                kind = "token" if length == 1 else "prompt"
                values = window[i] | caches.feeds(length, length)
                apply(sessions[kind], values)
                caches.take(values)
                _widen(seen[kind], values)
                window[i] = {border: values[border]}
        return seen


def _watched(path: Path) -> onnxruntime.InferenceSession:
    """A session of the graph that also gives the lowest ("low name") and highest number of every
    float value."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    for name in [v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT]:
        for kind, word in (("ReduceMin", "low"), ("ReduceMax", "high")):
            graph.node.append(helper.make_node(kind, [name], [f"{word} {name}"], keepdims=0))
            graph.output.append(
                helper.make_tensor_value_info(f"{word} {name}", TensorProto.FLOAT, [])
            )
    return cpu(model.SerializeToString(), path.parent, plain=True)


def _widen(seen: dict[str, Extent], values: Values) -> None:
    for word in [name for name in values if name.startswith("low ")]:
        name = word.removeprefix("low ")
        low, high = float(values[word]), float(values[f"high {name}"])
        before = seen.get(name, (low, high))
        seen[name] = min(low, before[0]), max(high, before[1])


def cache_scales(seen: Mapping[str, Mapping[str, Extent]], layers: range) -> dict[str, Scale]:
    """Scale and zero point of the keys and values of ``layers`` ("key_0" …), 8 bits over what
    calibration has seen."""
    scales = {}
    for name in (f"{kind}_{i}" for i in layers for kind in ("key", "value")):
        extents = [
            graph[f"{when}_{name}"] for graph in seen.values() for when in ("past", "present")
        ]
        low, high = min(x for x, _ in extents), max(x for _, x in extents)
        scale = max(high - low, 1e-6) / 255
        scales[name] = (scale, max(0, min(255, round(-low / scale))))
    return scales
