"""Running a folder of ONNX Runtime GenAI: logits and greedy generation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import onnxruntime_genai as genai

from phipipe import hardware
from phipipe.backends.absent import absent
from phipipe.backends.arrays import Array
from phipipe.backends.choosing import Choose, picked
from phipipe.backends.onnxruntime.layout import CONFIG, MODEL
from phipipe.models import tokenizer_files
from phipipe.steps import Json

GRAPHS = ("decoder", "vision", "speech", "embedding")  # parts with a session of their own
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Session:
    """``Runtime`` over a folder. Each half is loaded when it is asked for, in place of the other.
    ``threads`` is what onnxruntime-genai generates with, 0 for what it takes by itself: half of the
    machine's logical CPUs, however many cores they are.

    Raises:
        TargetError: ``api`` is "cuda", and this machine has no such GPU.
    """

    def __init__(self, folder: Path, api: str = "cpu", threads: int = 0) -> None:
        self._folder, self._provider, self._threads = folder, PROVIDERS[api], threads
        if api != "cpu":
            _check_provider(self._provider)
        self._config = json.loads((folder / CONFIG).read_text("utf-8"))["model"]
        self._session: onnxruntime.InferenceSession | None = None
        self._embedding: onnxruntime.InferenceSession | None = None  # of a model that sees
        self._model: genai.Model | None = None

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        if self._session is None:
            self._model = None
            self._session = _session(self._folder, self._provider)
            if "embedding" in self._config:
                self._embedding = _session(
                    self._folder, self._provider, self._config["embedding"]["filename"]
                )
        feeds = _feeds(self._session, self._config["decoder"], tokens)
        if self._embedding is not None:
            feeds |= {
                "inputs_embeds": _embedded(
                    self._embedding, self._config["decoder"]["hidden_size"], tokens
                )
            }
        output: npt.NDArray[np.float32] = self._session.run(["logits"], feeds)[0][0].astype(
            "float32", copy=False
        )
        return output

    def generate(
        self, prompt: Sequence[int], limit: int, choose: Choose | None = None
    ) -> Iterator[int]:
        ends = set(tokenizer_files.end_ids(self._config["eos_token_id"]))
        if (
            self._provider == PROVIDERS["cpu"]
            and self._config["decoder"]["session_options"]["provider_options"]
        ):
            return self._by_logits(prompt, limit, ends, choose)
        return self._by_genai(prompt, limit, ends, choose)

    def _by_logits(
        self, prompt: Sequence[int], limit: int, ends: set[int], choose: Choose | None
    ) -> Iterator[int]:
        """A GPU's graph on the CPU: onnxruntime-genai would ask for the GPU, and cannot decode fp16
        caches here."""
        tokens = list(prompt)
        for _ in range(min(limit, self._config["context_length"] - len(tokens))):
            tokens.append(picked(self.logits(tokens)[-1], choose))
            yield tokens[-1]
            if tokens[-1] in ends:
                return

    def _by_genai(
        self, prompt: Sequence[int], limit: int, ends: set[int], choose: Choose | None
    ) -> Iterator[int]:
        generator, room = self._generator(len(prompt), limit)
        generator.append_tokens(list(prompt))
        if choose is None:
            yield from _greedy(generator, room, ends)
        else:
            yield from _chosen(generator, room, ends, choose)

    def look(self, picture: Path, prompt: str) -> npt.NDArray[np.float32]:
        """Logits of every position of ``prompt`` with the picture in it, float32 [n,
        vocabulary]."""
        inputs, count = self._inputs(picture, prompt)
        generator, _ = self._generator(count, 1)
        generator.set_inputs(inputs)
        generator.generate_next_token()
        output: npt.NDArray[np.float32] = generator.get_output("logits")[0].astype(
            "float32", copy=False
        )
        return output

    def describe(self, picture: Path, prompt: str, limit: int) -> Iterator[int]:
        """At most ``limit`` token ids of the answer to ``prompt`` with the picture in it, chosen
        greedily."""
        inputs, count = self._inputs(picture, prompt)
        generator, room = self._generator(count, limit)
        generator.set_inputs(inputs)
        return _greedy(generator, room, set(tokenizer_files.end_ids(self._config["eos_token_id"])))

    def _inputs(self, picture: Path, prompt: str) -> tuple[genai.NamedTensors, int]:
        """What the runtime's own processor makes of both, and how many positions that is."""
        processor = self._loaded().create_multimodal_processor()
        inputs = processor(prompt, images=genai.Images.open(str(picture)))
        return inputs, int(inputs["input_ids"].as_numpy().shape[-1])

    def _loaded(self) -> genai.Model:
        if self._model is None:
            self._session = self._embedding = None
            config = genai.Config(str(self._folder))
            if self._threads:
                config.overlay(_overlay(self._config, self._threads))
            self._model = genai.Model(config)
        return self._model

    def _generator(self, length: int, limit: int) -> tuple[genai.Generator, int]:
        """A greedy generator for a prompt of ``length`` tokens, and how many it may answer with."""
        params = genai.GeneratorParams(self._loaded())
        longest = min(length + limit, self._config["context_length"])
        params.set_search_options(
            do_sample=False, num_beams=1, repetition_penalty=1.0, max_length=longest
        )
        return genai.Generator(self._model, params), longest - length

    def close(self) -> None:
        self._session = self._embedding = self._model = None


def _greedy(generator: genai.Generator, room: int, ends: set[int]) -> Iterator[int]:
    for _ in range(room):
        generator.generate_next_token()
        token = int(generator.get_next_tokens()[0])
        yield token
        if token in ends:
            return


def _chosen(generator: genai.Generator, room: int, ends: set[int], choose: Choose) -> Iterator[int]:
    for _ in range(room):
        token = choose(generator.get_logits()[0, -1].astype("float32", copy=False))
        yield token
        if token in ends:
            return
        generator.append_tokens([token])


def _check_provider(provider: str) -> None:
    if provider not in onnxruntime.get_available_providers() or not hardware.nvidia():
        raise absent("NVIDIA GPU", "onnxruntime's CUDA provider")
    onnxruntime.preload_dlls()  # CUDA's libraries come as packages beside it, where no loader looks


def _overlay(model: Mapping[str, Json], threads: int) -> str:
    """What onnxruntime-genai lays on its settings of ``model`` for that number of ``threads``."""
    options = {"session_options": {"intra_op_num_threads": threads}}
    parts = [name for name in GRAPHS if name in model]
    return json.dumps({"model": dict.fromkeys(parts, options)})


def _session(folder: Path, provider: str, name: str = MODEL) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = hardware.whole_cores()
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors; the exception carries the message anyway
    return onnxruntime.InferenceSession(str(folder / name), options, providers=[provider])


def _feeds(
    session: onnxruntime.InferenceSession, decoder: Mapping[str, Json], tokens: Sequence[int]
) -> dict[str, Array]:
    """Inputs for one pass over ``tokens`` [1, n] with empty caches [1, kv heads, 0, head size]."""
    count = len(tokens)
    cache = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
    known = {
        "input_ids": np.array([tokens], np.int64),
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count, dtype=np.int64)[None],
    }
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    wanted = [entry for entry in session.get_inputs() if entry.name != "inputs_embeds"]
    return {
        e.name: known[e.name] if e.name in known else np.zeros(cache, kinds[e.type]) for e in wanted
    }


def _embedded(session: onnxruntime.InferenceSession, hidden: int, tokens: Sequence[int]) -> Array:
    """What the decoder of a model that sees is given for ``tokens``, [1, n, hidden]; there are no
    pictures."""
    kind = np.float16 if session.get_inputs()[1].type == "tensor(float16)" else np.float32
    feeds = {
        "input_ids": np.array([tokens], np.int64),
        "image_features": np.zeros((0, hidden), kind),
    }
    vectors: Array = session.run(None, feeds)[0]
    return vectors
