"""Answers of the embedded model through whole builds, with real toolchains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing.shell import Run

from phipipe.package import package

RECIPE = """\
name: asked
source: {builtin: tiny-phi3}
device: cpu-x86_64
evaluate: {text: {builtin: stories}, tokens: 512, window: 256, generate: {new_tokens: 64, limit: 4}}
measure: {prompt_tokens: 16, new_tokens: 8, repetitions: 1}
matrix:
  - {name: it, backend: BACKEND, precision: PRECISION}
"""
OWN = [{"messages": [{"role": "user", "content": "Where is the key?"}]}]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("backend", "precision"),
    [("onnxruntime", "int4"), ("llamacpp", "fp16"), ("torch", "int8")],
)
def test_a_build_answers_as_the_original_does_and_says_so(
    run: Run, tmp_path: Path, toolchains: Path, backend: str, precision: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    words = RECIPE.replace("BACKEND", backend).replace("PRECISION", precision)
    recipe.write_text(words, "utf-8")
    gates = "evaluate.gates={ended: {min: 0.8}, loops: {max: 0}, empty: {max: 0}}"
    code, _, err = run("run", recipe, "--set", gates, "--out", tmp_path / "packages")
    assert code == 0, err
    made = tmp_path / "packages" / "asked-it"
    told = package.open_(made).fidelity.generation
    assert told is not None
    assert told.prompts == 4
    assert told.original["ended"] >= 3  # the embedded model tells its stories to the end
    assert told.metrics["answer_flips"] <= 0.5
    assert {
        gate["metric"] for gate in json.loads((made / "manifest.json").read_text())["gates"]
    } == {
        "empty",
        "ended",
        "loops",
    }
    assert "### Answers" in (made / "README.md").read_text("utf-8")

    code, out, err = run("eval", made, "--json")
    assert code == 0, err
    assert json.loads(out)["generation"]["metrics"] == told.metrics

    (tmp_path / "own.jsonl").write_text("".join(json.dumps(one) + "\n" for one in OWN), "utf-8")
    code, out, err = run("eval", made, "--prompts", tmp_path / "own.jsonl", "--json")
    assert code == 0, err
    assert json.loads(out)["generation"]["prompts"] == 1

    gates = "evaluate.gates={first_divergence: {min: 1000}}"
    code, _, err = run("run", recipe, "--set", gates, "--out", tmp_path / "none")
    assert code == 7
    assert "`first_divergence` is" in err
