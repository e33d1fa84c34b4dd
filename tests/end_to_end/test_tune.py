"""Widths chosen for the embedded model, proven on files of real toolchains."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from testing.shell import Run

from phipipe.package import package
from phipipe.tuning.aims import size_of

RECIPE = """\
name: small
source: {builtin: tiny-phi3}
device: DEVICE
backend: BACKEND
precision: int4
weights: none
calibrate: {tokens: 4096}
evaluate: {text: {builtin: stories}, tokens: 1024, window: 256}
measure: {prompt_tokens: 16, new_tokens: 8, repetitions: 1}
"""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("backend", "device"),
    [
        ("onnxruntime", "cpu-x86_64"),
        pytest.param("llamacpp", "cpu-x86_64", marks=pytest.mark.nightly),
        pytest.param("openvino", "intel-cpu", marks=pytest.mark.nightly),
        pytest.param("mlx", "apple-silicon", marks=pytest.mark.nightly),
        pytest.param("torch", "cpu-x86_64", marks=pytest.mark.nightly),
    ],
)
def test_a_tuned_recipe_builds_what_was_promised(
    run: Run, tmp_path: Path, toolchains: Path, backend: str, device: str
) -> None:
    recipe, target = tmp_path / "recipe.yaml", tmp_path / "tuned" / "tuned.yaml"
    recipe.write_text(RECIPE.replace("BACKEND", backend).replace("DEVICE", device), "utf-8")
    target.parent.mkdir()
    code, out, err = run("tune", recipe, "--no-answers", "--write", target, "--json")
    assert code == 0, err
    (told,) = json.loads(out)
    check(told)
    code, out, err = run("run", target, "--out", tmp_path / "packages", "--json")
    assert code == 0, err
    (built,) = json.loads(out)
    assert all(step["cached"] for step in built["steps"] if step["name"] in ("quantize", "weights"))
    made = package.open_(tmp_path / "packages" / "small-tuned")
    assert made.fidelity.metrics["kld_mean"] == told["metrics"]["kld_mean"]
    assert made.fidelity.metrics["size_gib"] * 2**30 <= told["limit_bytes"] + 0.5

    code, _, err = run("tune", recipe, "--no-answers", "--write", target)
    assert code == 2
    assert "is there already" in err

    code, _, err = run(
        "tune", recipe, "--no-answers", "--size", "1KiB", "--write", tmp_path / "x.yaml"
    )
    assert code == 3
    offered = re.search(r"give --size (\S+),", err)
    assert offered, err
    (smallest,) = (one["size_bytes"] for one in told["files"] if one["what"] == "smallest")
    assert smallest <= size_of(offered[1])


def check(told: dict[str, Any]) -> None:
    """The best file fits and is closer than the recipe as it stands; noise costs what was said."""
    files = {file["what"]: file for file in told["files"]}
    (best,) = [file for file in told["files"] if file["best"]]
    assert best["size_bytes"] <= told["limit_bytes"] == files["as it stands"]["size_bytes"]
    assert best["metrics"]["kld_mean"] <= files["as it stands"]["metrics"]["kld_mean"]
    assert files["smallest"]["size_bytes"] <= best["size_bytes"]
    sizes = [point["size_bytes"] for point in told["curve"]]
    losses = [point["kld_mean"] for point in told["curve"]]
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)
    assert len(told["checks"]) == 8


@pytest.mark.timeout(1200)
@pytest.mark.nightly
def test_learned_weights_are_tuned_for_several_runtimes_at_once(
    run: Run, tmp_path: Path, toolchains: Path
) -> None:
    recipe, target = tmp_path / "recipe.yaml", tmp_path / "tuned.yaml"
    text = RECIPE.replace("backend: BACKEND\n", "weights: {learn: search}\n")
    rows = "matrix:\n  - {name: a, backend: onnxruntime}\n  - {name: b, backend: llamacpp}\n"
    recipe.write_text(text.replace("DEVICE", "cpu-x86_64") + rows, "utf-8")
    code, out, err = run("tune", recipe, "--bits", "7", "--no-answers", "--write", target, "--json")
    assert code == 0, err
    assert [one["name"] for one in json.loads(out)] == ["small-a", "small-b"]
    code, _, err = run("validate", target)
    assert code == 0, err
    code, out, _ = run("run", target, "--out", tmp_path / "packages", "--json")
    assert code == 0
    for one, built in zip(("a", "b"), json.loads(out), strict=True):
        assert built["name"] == f"small-tuned-{one}"
