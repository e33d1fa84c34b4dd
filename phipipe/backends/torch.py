"""PyTorch: the baseline every runtime is compared with, and a plain 16- or 32-bit checkpoint as output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from phipipe.backends.base import Advice, Inputs, Json, Params, Runtime, Step, Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.models import Checkpoint
    from phipipe.recipe import Precision, Recipe

TITLE = "PyTorch checkpoint (transformers)"
TOOLCHAIN = "torch"
APIS = frozenset({"cpu", "cuda", "metal"})
HOST_APIS = frozenset({"cpu"})
_DTYPES: Mapping[Precision, str] = {"fp32": "float32", "fp16": "float16"}
PRECISIONS: Mapping[str, Mapping[Precision, str]] = dict.fromkeys(sorted(APIS), _DTYPES)


class Options(BaseModel):
    """PyTorch output is not quantized: there is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def steps(recipe: Recipe, options: BaseModel, checkpoint: Checkpoint, config_patch: Mapping[str, Json]) -> list[Step]:
    """One step: the checkpoint's floating-point tensors, cast."""
    size = checkpoint.parameters * (4 if recipe.precision == "fp32" else 2)
    return [
        Step(
            name="convert",
            runs="phipipe.backends.torch:cast",
            version=1,
            needs={"source": "source"},
            params={"dtype": _DTYPES[recipe.precision]},
            unquantized=recipe.precision,
            toolchain=TOOLCHAIN,
            output_bytes=size,
            memory_bytes=size,
        )
    ]


def scheme(recipe: Recipe, options: BaseModel) -> str:
    """The dtype."""
    return _DTYPES[recipe.precision]


def advise(recipe: Recipe, options: BaseModel, checkpoint: Checkpoint) -> list[Advice]:
    """Nothing that the precisions above do not say already."""
    return []


def cast(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: copy the checkpoint file by file, floating-point tensors cast to ``params["dtype"]``.

    Shards are read and written one at a time; the layout of the source's config is kept, since
    other tools misread what transformers 5 writes.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from phipipe import models

    dtype = getattr(torch, params["dtype"])
    for name in models.files(inputs["source"]):
        if not name.endswith(".safetensors"):
            shutil.copyfile(inputs["source"] / name, out / name)
            continue
        with safe_open(inputs["source"] / name, framework="pt") as shard:
            tensors = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118 (not a mapping)
        tensors = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
        save_file(tensors, out / name, metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text("utf-8"))
    config["torch_dtype"] = params["dtype"]
    config.pop("auto_map", None)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


class _Torch:
    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        # fp16 matrix products on a CPU accumulate as the hardware likes; fp32 arithmetic on the stored
        # values shows what the stored values cost, which is what a fidelity table is about.
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
        ).eval()
        ends = self._model.generation_config.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        with self._torch.inference_mode():
            ids = self._torch.tensor([list(tokens)])
            output: Any = self._model(input_ids=ids, use_cache=False).logits[0].float().numpy()
        return output  # type: ignore[no-any-return]

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        ids, cache = self._torch.tensor([list(prompt)]), None
        for _ in range(limit):
            with self._torch.inference_mode():
                output = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            token = int(output.logits[0, -1].argmax())
            yield token
            if token in self._ends:
                return
            ids = self._torch.tensor([[token]])

    def close(self) -> None:
        del self._model


class _Tokenizer:
    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def open(artifact: Path) -> Runtime:
    """Load a checkpoint in fp32 on the CPU."""
    return _Torch(artifact)


def tokenizer(artifact: Path) -> Tokenizer:
    """The checkpoint's tokenizer as transformers reads it."""
    return _Tokenizer(artifact)


if TYPE_CHECKING:
    from phipipe.backends import torch as _this
    from phipipe.backends.base import Backend

    _: Backend = _this
