"""Running static graphs: prompts in chunks, answers token by token, over a cache that slides.

The folder says in ``static.json`` how long its graphs are, into how many parts the layers are
split, how its caches are stored, and for what processor they were compiled. Graphs that were not
compiled run on the CPU, others on Qualcomm's HTP or, without one, its emulator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from phipipe.backends.choosing import Choose, picked
from phipipe.backends.qnn import htp
from phipipe.backends.qnn.stages import EMBEDDING, facts_of, name_of, stages
from phipipe.errors import StepFailed
from phipipe.steps import Json

Values = dict[str, npt.NDArray[Any]]
"""What graphs were fed and have made, by name."""


def cpu(
    model: Path | bytes, folder: Path | None = None, *, plain: bool = False
) -> onnxruntime.InferenceSession:
    """A session of onnxruntime on this CPU; it maps the weights, so that they take no memory of
    their own.

    ``model`` is a file, or a serialized graph whose data files lie in ``folder``. ``plain``: every
    value is computed as the graph says, with nothing fused.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; the exception carries the message anyway
    # packed weights would be copies
    options.add_session_config_entry("session.disable_prepacking", "1")
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class Caches:
    """Keys and values of ``layers``, ``context`` positions each, newest last; and which positions
    hold a token."""

    def __init__(self, facts: Mapping[str, Json], layers: range) -> None:
        heads, size, context = facts["kv_heads"], facts["head_size"], facts["context_length"]
        kind = np.dtype(facts["caches"])
        self.keys = {i: np.zeros((heads, 1, size, context), kind) for i in layers}
        self.values = {i: np.zeros((heads, 1, context, size), kind) for i in layers}
        self.seen = np.zeros((1, context), np.int32)
        self.position = 0

    def feeds(self, count: int, length: int) -> Values:
        """Inputs for ``count`` new tokens in a graph of ``length``: what is left of the caches when
        they slide."""
        new = np.zeros((1, length), np.int32)
        new[0, :count] = 1
        self.seen = np.concatenate([self.seen[:, length:], new], -1)
        positions = np.zeros((1, length), np.int32)
        positions[0, :count] = np.arange(self.position, self.position + count)
        self.position += count
        feeds: Values = {"position_ids": positions, "attention_mask": self.seen}
        for i in self.keys:
            feeds[f"past_key_{i}"] = np.ascontiguousarray(self.keys[i][..., length:])
            feeds[f"past_value_{i}"] = np.ascontiguousarray(self.values[i][:, :, length:])
        return feeds

    def take(self, values: Values) -> None:
        """Append the new positions: ``values`` has what graphs were fed (``past_…``) and have made
        (``present_…``)."""
        for i in self.keys:
            self.keys[i] = np.concatenate([values[f"past_key_{i}"], values[f"present_key_{i}"]], -1)
            self.values[i] = np.concatenate(
                [values[f"past_value_{i}"], values[f"present_value_{i}"]], -2
            )


def apply(session: onnxruntime.InferenceSession, values: Values) -> None:
    """Run one graph on those of ``values`` that it reads, and add what it makes."""
    names = [output.name for output in session.get_outputs()]
    feeds = {entry.name: values[entry.name] for entry in session.get_inputs()}
    values |= dict(zip(names, session.run(names, feeds), strict=True))


class Session:
    """``Runtime`` over a folder of static graphs; each is opened when it is needed first."""

    def __init__(self, folder: Path) -> None:
        self.facts = facts_of(folder)
        if self.facts["soc"] and self.facts["shared"] and htp.emulated():
            raise StepFailed(
                "the emulator cannot load graphs that share their weights",
                hint="run this package on the device; its fidelity was measured on the same "
                "graphs compiled apart",
            )
        self._folder = folder
        self._embedding = cpu(folder / EMBEDDING)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def _open(self, name: str) -> onnxruntime.InferenceSession:
        if name not in self._sessions:
            path, soc = self._folder / name, self.facts["soc"]
            self._sessions[name] = htp.session(path, soc, {}, {}) if soc else cpu(path)
        return self._sessions[name]

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        caches, step = self._caches(), self.facts["prompt_length"]
        return np.concatenate(
            [self.run(caches, tokens[i : i + step]) for i in range(0, len(tokens), step)]
        )

    def generate(
        self, prompt: Sequence[int], limit: int, choose: Choose | None = None
    ) -> Iterator[int]:
        caches, step = self._caches(), self.facts["prompt_length"]
        for i in range(0, len(prompt), step):
            logits = self.run(caches, prompt[i : i + step])
        # the last chunk's empty places count: they are in the caches, too
        taken = -(-len(prompt) // step) * step
        for _ in range(min(limit, self.facts["context_length"] - taken)):
            token = picked(logits[-1], choose)
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
