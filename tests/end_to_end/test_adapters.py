"""An adapter and its base through whole builds, with the real toolchain of torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing import adapters as small
from testing.shell import Run

from phipipe.hub import take
from phipipe.package import package

RECIPE = """\
name: tuned
source: {base: {builtin: tiny-phi3}, adapter: {path: first}}
device: cpu-x86_64
backend: torch
precision: int8
evaluate: {text: {builtin: stories}, tokens: 512, window: 256}
measure: {prompt_tokens: 16, new_tokens: 8, repetitions: 1}
matrix:
  - {name: first}
  - {name: second, source: {adapter: {path: second}}}
"""


def write(folder: Path, fill: float) -> None:
    """An adapter of the embedded model's down projections, every number ``fill``."""
    config = json.loads((take.BUILTIN_MODELS["tiny-phi3"] / "config.json").read_text("utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {}
    for layer in range(config["num_hidden_layers"]):
        at = f"{small.PREFIX}model.layers.{layer}.mlp.down_proj"
        shapes |= {f"{at}.lora_A.weight": [4, inner], f"{at}.lora_B.weight": [hidden, 4]}
    told = small.settings("mlp.down_proj", base_model_name_or_path="tiny-phi3")
    small.write(folder, told, shapes, fill)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_two_adapters_of_one_base_are_built_and_compared_with_it(
    run: Run, tmp_path: Path, toolchains: Path
) -> None:
    write(tmp_path / "first", 0.0)
    write(tmp_path / "second", 0.02)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, "utf-8")
    code, _, err = run("run", recipe, "--out", tmp_path / "packages")
    assert code == 0, err
    manifests = [
        package.read_manifest(tmp_path / "packages" / f"tuned-{name}")
        for name in ("first", "second")
    ]
    nothing, much = (manifest.fidelity.change for manifest in manifests)
    assert nothing is not None
    assert much is not None
    assert nothing.metrics["kld_mean"] < 1e-9
    assert nothing.metrics["top1"] == 1.0
    assert much.metrics["kld_mean"] > 0
    one, two = (manifest.steps["base-baseline"].key for manifest in manifests)
    assert one == two
    for name in ("first", "second"):
        assert run("verify", tmp_path / "packages" / f"tuned-{name}")[0] == 0
    assert "What the adapter changes" in (
        tmp_path / "packages" / "tuned-second" / "README.md"
    ).read_text("utf-8")
