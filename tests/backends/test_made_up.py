"""Another backend is another folder, and nothing else: a copy of phipipe with one folder more lists
it, plans for it and builds with it, in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import phipipe

FACE = '''
"""What the last layer would say of the first one's input, with weights of 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from phipipe.backends.base import Backend, Job
from phipipe.backends.rules import Rule
from phipipe.steps import Step

if TYPE_CHECKING:
    from phipipe.backends.base import Runtime, Tokenizer

STEPS = {"convert": "phipipe.backends.madeup.convert:convert"}
SCHEMES = {"int8": "8 bits per row"}


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: int = Field(default=127, ge=1, le=127, description="Levels on either side of zero.")


def steps(job: Job[Options]) -> list[Step]:
    checkpoint = job.checkpoint
    step = Step(
        name="convert",
        runs="madeup/convert",
        version=1,
        needs={"source": "source"},
        params={"levels": job.options.levels},
        toolchain="torch",
        output_bytes=2 * checkpoint.vocab_size * checkpoint.hidden_size,
    )
    return [step]


def open(artifact: Path, api: str = "cpu") -> Runtime:
    from phipipe.backends.madeup.session import Session

    return Session(artifact)


def tokenizer(artifact: Path) -> Tokenizer:
    from phipipe.models.tokenizer import of_folder

    return of_folder(artifact)


FACE = Backend(
    title="Made up",
    toolchain="torch",
    options=Options,
    precisions={"cpu": SCHEMES},
    systems=frozenset({"linux", "windows", "macos"}),
    cache_bytes={"cpu": 4},
    files=("config.json", "*.bin"),
    steps=steps,
    scheme=lambda job: SCHEMES[job.recipe.precision],
    rules=(
        Rule(
            id="Z01",
            level="warning",
            when=lambda r, o, c: o.levels < 8,
            message="`quantize.levels: {options.levels}` leaves little of this model",
            hint="set `quantize.levels: 127`",
        ),
    ),
    open=open,
    tokenizer=tokenizer,
)
'''
CONVERT = '''
from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from phipipe.models import checkpoints
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params

KEPT = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"}


def convert(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: two matrices of the checkpoint ``inputs["source"]`` as int8 with a scale per row."""
    content = (inputs["source"] / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    places = json.loads(content[8:start])
    for part, name in KEPT.items():
        begin, end = places[name]["data_offsets"]
        assert places[name]["dtype"] == "BF16"
        halves = np.frombuffer(content[start + begin : start + end], "<u2")
        rows = (halves.astype("<u4") << 16).view("<f4").reshape(places[name]["shape"])
        scales = np.abs(rows).max(1, keepdims=True).clip(1e-9) / params["levels"]
        np.rint(rows / scales).astype(np.int8).tofile(out / f"{part}.bin")
        scales.tofile(out / f"{part}_scales.bin")
    copy_beside(inputs["source"], out, checkpoints.loose_files(inputs["source"]))
'''
SESSION = """
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt


def _rows(folder: Path, part: str) -> npt.NDArray[np.float32]:
    scales = np.fromfile(folder / f"{part}_scales.bin", "<f4")[:, None]
    return np.fromfile(folder / f"{part}.bin", np.int8).reshape(len(scales), -1) * scales


class Session:
    def __init__(self, folder: Path) -> None:
        self._embedding, self._head = _rows(folder, "embedding"), _rows(folder, "head")

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        rows = self._embedding[list(tokens)]
        norms = np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)
        return rows / norms @ self._head.T

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        token = prompt[-1]
        for _ in range(limit):
            token = int(self.logits([token])[0].argmax())
            yield token

    def close(self) -> None:
        del self._embedding, self._head
"""
FOLDER = {"__init__.py": FACE, "convert.py": CONVERT, "session.py": SESSION}
RECIPE = """
name: another
source: {builtin: tiny-phi3}
device: cpu-x86_64
backend: madeup
precision: int8
quantize: {levels: 100}
evaluate: {text: {builtin: stories}, tokens: 1024}
measure: {prompt_tokens: 32, new_tokens: 8, repetitions: 1}
"""
# The backend's own steps, done where they are done in any run, and what it then opens.
BUILD = """
import json, sys
from dataclasses import replace
from pathlib import Path

from phipipe import backends
from phipipe.cli.listeners import Silent
from phipipe.planning.preparation import prepare
from phipipe.recipe import loading
from phipipe.execution.dispatch import attempt
from phipipe.execution.manner import Manner
from phipipe.settings import Settings
from phipipe.store.store import Store

(build,) = loading.load(Path(sys.argv[1]), options=backends.OptionsOf())
plan = prepare(build)
own = tuple(step for step in plan.steps if step.name in ("source", "convert"))
settings = Settings.read()
(outcome,) = attempt(
    [replace(plan, steps=own)], Store(settings.cache), settings, Silent(), Manner(jobs=1)
)
if outcome.error:
    raise outcome.error
artifact = outcome.results["convert"].stored.path
runtime = backends.load("madeup").open(artifact)
logits = runtime.logits([1, 2, 3])
print(json.dumps({
    "files": sorted(path.name for path in artifact.iterdir()),
    "shape": logits.shape,
    "dtype": str(logits.dtype),
    "answer": list(runtime.generate([5], 4)),
    "chain": int(runtime.logits([5])[0].argmax()),
    "heavy": [name for name in ("torch", "safetensors") if name in sys.modules],
}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of phipipe that has one backend more, and a recipe for it."""
    folder = tmp_path_factory.mktemp("home")
    package = folder / "phipipe"
    shutil.copytree(
        Path(phipipe.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "backends" / "madeup").mkdir()
    for name, text in FOLDER.items():
        (package / "backends" / "madeup" / name).write_text(text.lstrip(), "utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.lstrip(), "utf-8")
    return folder


def python(home: Path, *words: str, **variables: str) -> str:
    """What Python says, with the copy in place of phipipe, there and in all that it starts."""
    environment = {**os.environ, "PYTHONPATH": str(home), **variables}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=home,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_it_is_listed(home: Path) -> None:
    (row,) = (
        line
        for line in python(home, "-m", "phipipe", "backends").splitlines()
        if line.startswith("madeup")
    )
    assert "Made up" in row


def test_its_options_describe_themselves(home: Path) -> None:
    shown = python(home, "-m", "phipipe", "backends", "show", "madeup")
    assert "levels" in shown
    assert "Levels on either side of zero." in shown


def test_a_recipe_is_planned_with_its_steps_rules_and_options(home: Path) -> None:
    plan = python(home, "-m", "phipipe", "plan", "recipe.yaml")
    assert "int8 for CPU (x86-64), madeup" in plan
    assert "  convert  " in plan
    assert "Z01" not in plan
    warned = python(home, "-m", "phipipe", "plan", "recipe.yaml", "--set", "quantize.levels=3")
    assert "`quantize.levels: 3` leaves little of this model [Z01]" in warned


def test_its_step_runs_in_a_child_and_what_it_made_is_opened(home: Path, own_cache: Path) -> None:
    told = python(home, "-c", BUILD, "recipe.yaml", PHIPIPE_TOOLCHAIN="current")
    built = json.loads(told.splitlines()[-1])
    assert {"embedding.bin", "head.bin", "config.json", "tokenizer.json"} <= set(built["files"])
    assert (built["shape"], built["dtype"]) == ([3, 2304], "float32")
    assert len(built["answer"]) == 4
    assert built["answer"][0] == built["chain"]
    assert built["heavy"] == []


def test_a_whole_build_is_scored_measured_and_packaged(home: Path, toolchains: Path) -> None:
    python(home, "-m", "phipipe", "run", "recipe.yaml", "--out", "packages")
    package = home / "packages" / "another"
    manifest = json.loads((package / "manifest.json").read_text("utf-8"))
    assert manifest["backend"] == "madeup"
    assert manifest["steps"]["convert"]["runs"] == "madeup/convert"
    assert manifest["fidelity"]["metrics"]["kld_mean"] > 0.1  # a model without layers
    assert (package / "head_scales.bin").is_file()
    python(home, "-m", "phipipe", "verify", "packages/another")
