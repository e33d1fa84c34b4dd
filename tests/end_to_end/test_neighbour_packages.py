"""A Phi-4 in Llama's layout, a Qwen3, and an adapter of Phi-4-mini, small, by one command each to
packages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from testing import adapters
from testing.drive import drive
from testing.family_checkpoints import slug
from testing.places import QUICKSTART
from testing.shell import Shell

NEIGHBOURS, TUNED = ("Phi-4 as Llama", "Qwen3-0.6B"), "Phi-4-mini"
SOURCES = (*NEIGHBOURS, f"{TUNED} with an adapter")
BUILDS = {
    "onnxruntime": ("cpu-x86_64", "{block_size: 32}"),
    "openvino": ("cpu-x86_64", "{group_size: 32}"),
    "torch": ("cpu-x86_64", "{group_size: 32}"),
    "llamacpp": ("cpu-x86_64", "{type: Q4_0, imatrix: true, tensors: {ffn_down: Q8_0}}"),
    "mlx": ("apple-silicon", "{group_size: 32, mixed: mixed_4_6}"),
    "litert": ("cpu-x86_64", "{}"),
}
FEW = ("evaluate.tokens=512", "evaluate.window=128", "evaluate.gates={}")
WORST = 0.4  # nats: random weights, 4 bits
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def sources(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The recipe's ``source`` of each of ``SOURCES``."""
    root = tmp_path_factory.mktemp("neighbours")
    drive(python_of("torch"), "-m", "testing.neighbour_checkpoints", root, *NEIGHBOURS)
    drive(python_of("torch"), "-m", "testing.family_checkpoints", root, TUNED)
    folders = {name: root / slug(name) / "source" for name in (*NEIGHBOURS, TUNED)}
    adapter = adapt(folders[TUNED], root / "adapter")
    told = {name: f"{{path: {folders[name].as_posix()}}}" for name in NEIGHBOURS}
    both = f"base: {{path: {folders[TUNED].as_posix()}}}, adapter: {{path: {adapter.as_posix()}}}"
    return {**told, SOURCES[-1]: f"{{{both}}}"}


def adapt(base: Path, folder: Path) -> Path:
    """An adapter of the base's fused attention and its down projections that changes answers."""
    config = json.loads((base / "config.json").read_text("utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] + 2 * config["num_key_value_heads"]
    fused = heads * hidden // config["num_attention_heads"]
    shapes: adapters.Shapes = {}
    for layer in range(config["num_hidden_layers"]):
        at = f"{adapters.PREFIX}model.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.qkv_proj", fused, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            shapes[f"{at}.{name}.lora_A.weight"] = [adapters.RANK, columns]
            shapes[f"{at}.{name}.lora_B.weight"] = [rows, adapters.RANK]
    told = adapters.settings("self_attn.qkv_proj", "mlp.down_proj")
    return adapters.write(folder, told, shapes, fill=0.05)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("backend", BUILDS)
def test_one_command_leads_to_a_package(
    sources: dict[str, str], toolchains: Path, tmp_path: Path, backend: str, name: str
) -> None:
    device, quantize = BUILDS[backend]
    changes = [f"source={sources[name]}", f"device={device}", f"backend={backend}"]
    changes += [f"quantize={quantize}", "evaluate.accept=[tokenizer]", *FEW]
    changes += ["calibrate.text={builtin: stories}", "measure={prompt_tokens: 16, new_tokens: 16}"]
    sets = [word for change in changes for word in ("--set", change)]
    shell = Shell(tmp_path, toolchains)
    shell("run", QUICKSTART, "--out", tmp_path / "made", *sets, timeout=1500)
    (manifest,) = (tmp_path / "made").rglob("manifest.json")
    told = json.loads(manifest.read_text("utf-8"))
    lost, change = told["fidelity"]["metrics"]["kld_mean"], told["fidelity"].get("change")
    assert lost < WORST
    assert bool(change) == (name not in NEIGHBOURS)
    assert not change or change["metrics"]["kld_mean"] > lost, "rounding hides no adapter"
    shell("verify", manifest.parent)
