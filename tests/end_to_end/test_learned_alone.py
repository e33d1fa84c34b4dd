"""A recipe's learned weights are the same alone and beside other builds."""

from __future__ import annotations

from pathlib import Path

import pytest
from testing.shell import Run

RECIPE = """\
name: r
source: {builtin: tiny-phi3}
device: cpu-x86_64
backend: llamacpp
precision: int4
evaluate: {text: {builtin: stories}, tokens: 512}
calibrate: {tokens: 1024}
measure: {prompt_tokens: 16, new_tokens: 4, repetitions: 1}
matrix:
  - {name: learned}
  - {name: own, weights: none}
"""


@pytest.mark.timeout(1200)
def test_a_package_of_a_matrix_is_made_again_alone(
    run: Run, tmp_path: Path, toolchains: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE, "utf-8")
    together, alone = tmp_path / "together", tmp_path / "alone"
    code, _, err = run("run", tmp_path / "r.yaml", "--out", together, "--jobs", "2")
    assert code == 0, err
    monkeypatch.setenv("PHIPIPE_CACHE", str(tmp_path / "another cache"))
    code, _, err = run("run", tmp_path / "r.yaml", "--out", alone, "--only", "learned")
    assert code == 0, err
    files = [folder / "r-learned" / "model.gguf" for folder in (together, alone)]
    assert files[0].read_bytes() == files[1].read_bytes()
    code, out, err = run("rebuild", together / "r-learned", "--check")
    assert code == 0, out + err
