"""A Phi-4 in Llama's layout and a Qwen3, small, by one command each to packages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from testing.drive import drive
from testing.family_checkpoints import slug
from testing.places import QUICKSTART
from testing.shell import Shell

NAMES = ("Phi-4 as Llama", "Qwen3-0.6B")
BUILDS = {
    "onnxruntime": ("cpu-x86_64", "{block_size: 32}"),
    "openvino": ("cpu-x86_64", "{group_size: 32}"),
    "torch": ("cpu-x86_64", "{group_size: 32}"),
    "llamacpp": ("cpu-x86_64", "{type: Q4_0, imatrix: true, tensors: {ffn_down: Q8_0}}"),
    "mlx": ("apple-silicon", "{group_size: 32, mixed: mixed_4_6}"),
    "litert": ("cpu-x86_64", "{}"),
}
FEW = ("evaluate.tokens=512", "evaluate.window=128", "evaluate.gates={}")
WORST = 0.2  # nats: random weights, 4 bits
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def checkpoints(python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("neighbours")
    drive(python_of("torch"), "-m", "testing.neighbour_checkpoints", root, *NAMES)
    return root


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BUILDS)
def test_one_command_leads_to_a_package(
    checkpoints: Path, toolchains: Path, tmp_path: Path, backend: str, name: str
) -> None:
    device, quantize = BUILDS[backend]
    source = checkpoints / slug(name) / "source"
    changes = [f"source={{path: {source.as_posix()}}}", f"device={device}", f"backend={backend}"]
    changes += [f"quantize={quantize}", "evaluate.accept=[tokenizer]", *FEW]
    changes += ["calibrate.text={builtin: stories}", "measure={prompt_tokens: 16, new_tokens: 16}"]
    sets = [word for change in changes for word in ("--set", change)]
    shell = Shell(tmp_path, toolchains)
    shell("run", QUICKSTART, "--out", tmp_path / "made", *sets)
    (manifest,) = (tmp_path / "made").rglob("manifest.json")
    told = json.loads(manifest.read_text("utf-8"))
    assert told["fidelity"]["metrics"]["kld_mean"] < WORST
    shell("verify", manifest.parent)
