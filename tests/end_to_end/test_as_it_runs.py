"""The embedded model as each runtime computes by default, and with a quantized cache, through
whole builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from testing.shell import Run

from phipipe.package import package

RECIPE = """\
name: run
source: {builtin: tiny-phi3}
precision: PRECISION
evaluate: {text: {builtin: stories}, tokens: 1024, gates: {kld_run: {max: 0.01}}}
measure: {prompt_tokens: 16, new_tokens: 8, repetitions: 1}
matrix:
  - {name: it, backend: BACKEND, device: DEVICE}
"""
# Backend → what its arithmetic costs an 8-bit build, in nats: below and above. Most round a lot
# more than 8 bits of weights lose; llama.cpp's cache and attention move as much as chance does.
COSTS = {
    "llamacpp": (-5e-6, 5e-6),
    "mlx": (1e-5, 2e-4),
    "openvino": (2e-6, 3e-4),
    "torch": (5e-6, 2e-4),
}
CACHES = ("llamacpp", "mlx", "openvino")


def built(run: Run, folder: Path, backend: str, precision: str = "int8") -> Path:
    """The package of the build, which a gate on its run let pass."""
    device = "apple-silicon" if backend == "mlx" else "cpu-x86_64"
    words = {"BACKEND": backend, "PRECISION": precision, "DEVICE": device}
    text = RECIPE
    for name, value in words.items():
        text = text.replace(name, value)
    (folder / "recipe.yaml").write_text(text, "utf-8")
    code, _, err = run("run", folder / "recipe.yaml", "--out", folder / "packages")
    assert code == 0, err
    return folder / "packages" / "run-it"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("backend", COSTS)
def test_a_build_tells_what_its_file_loses_and_what_its_run_does(
    run: Run, tmp_path: Path, toolchains: Path, backend: str
) -> None:
    made = built(run, tmp_path, backend)
    told = package.open_(made).fidelity
    low, high = COSTS[backend]
    cost = told.metrics["kld_run"] - told.metrics["kld_mean"]
    assert cost != 0
    assert low < cost < high
    assert told.run is not None
    assert told.run.how
    assert told.run.positions == told.positions
    assert f"by default: {told.run.how}" in (made / "README.md").read_text("utf-8")
    (gate,) = json.loads((made / "manifest.json").read_text("utf-8"))["gates"]
    assert (gate["metric"], gate["value"]) == ("kld_run", told.metrics["kld_run"])
    code, out, err = run("compare", made, "--json", "--out", tmp_path / "board")
    assert code == 0, err
    (entry,) = json.loads(out)["entries"]
    assert (entry["knob"], entry["metrics"]["kld_run"]) == (told.run.how, gate["value"])
    if backend in CACHES:
        check_caches(run, made, backend, told.metrics["kld_run"])


def check_caches(run: Run, made: Path, backend: str, usual: float) -> None:
    """Keys and values in 8 bits cost little, in 4 bits a lot."""
    found: dict[str, dict[str, Any]] = {}
    for kind in ("q8", "q4"):
        code, out, err = run("eval", made, "--kv", kind, "--json")
        assert code == 0, err
        found[kind] = json.loads(out)["cache"]
        assert found[kind]["kind"] == kind
        assert found[kind]["is_usual"] == (backend == "openvino" and kind == "q8")
        assert (" in groups of 64" in found[kind]["kept"]) == (backend == "mlx")
        assert found[kind]["usual_kld"] == pytest.approx(usual, rel=0.05)
    noise = 2 * found["q8"]["usual_kld_stderr"]
    assert found["q8"]["kld"] >= found["q8"]["usual_kld"] - noise
    assert found["q8"]["kld"] < 1e-3
    # one call for a whole window would read no rounded key, and cost nothing
    assert found["q4"]["kld"] > 3 * found["q8"]["kld"]
    code, out, err = run("eval", made, "--kv", "q4")
    assert code == 0, err
    assert f"with one of q4 ({found['q4']['kept']}) it is" in out


@pytest.mark.timeout(1200)
def test_a_runtime_without_a_knob_has_one_figure(
    run: Run, tmp_path: Path, toolchains: Path
) -> None:
    made = built(run, tmp_path, "onnxruntime")
    told = package.open_(made).fidelity
    assert told.metrics["kld_run"] == told.metrics["kld_mean"]
    code, out, err = run("eval", made)
    assert code == 0, err
    assert "kld_run" not in out
    assert "; as it runs" in " ".join(out.split())
    code, out, err = run("eval", made, "--json")
    assert code == 0, err
    again = json.loads(out)["evaluation"]["metrics"]
    for name in ("size_gib", "bits_per_weight"):
        assert again[name] == told.metrics[name]
    code, out, err = run("eval", made, "--kv", "q8")
    assert code == 3
    assert "backends that can: llamacpp, mlx, openvino" in err
