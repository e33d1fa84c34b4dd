"""The embedded model, scored as far as needed: whole builds with `evaluate.tokens: auto`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing.shell import Run

from phipipe.board import file
from phipipe.evaluate import sampling
from phipipe.package import package

RECIPE = """\
name: far
source: {builtin: tiny-phi3}
device: cpu-x86_64
backend: onnxruntime
weights: none
measure: {prompt_tokens: 16, new_tokens: 8, repetitions: 1}
evaluate:
  text: {builtin: stories}
  tokens: auto
  gates: {kld_mean: {max: 0.5}, top1: {min: 0.5}, size_gib: {max: 1}}
matrix:
  - {name: four, precision: int4}
  - {name: eight, precision: int8}
  - {name: all, precision: int4, evaluate: {tokens: 4096}}
"""


@pytest.mark.timeout(1200)
def test_builds_stop_when_they_know_enough_and_still_compare(
    run: Run, tmp_path: Path, toolchains: Path
) -> None:
    (tmp_path / "far.yaml").write_text(RECIPE, "utf-8")
    code, out, err = run("run", tmp_path / "far.yaml", "--out", tmp_path / "packages", "--json")
    assert code == 0, err
    four, _, whole = json.loads(out)
    told = four["evaluation"]["sampling"]
    windows = 4096 // 512
    assert told["reason"] == "decided"
    assert told["tokens"] < told["cap"] == 4096
    assert told["relative_error"] < 0.05
    assert told["windows"] == sampling.order(windows)[: len(told["windows"])]
    assert four["evaluation"]["positions"] == 511 * len(told["windows"])
    # of the build that asked for all, the same windows gave the same figures
    every = package.open_(tmp_path / "packages" / "far-all").fidelity
    some = package.open_(tmp_path / "packages" / "far-four").fidelity
    assert every.sampling is not None
    assert some.sampling is not None
    over = [sampling.over(one, some.sampling.windows)[0] for one in (every.sampling, some.sampling)]
    assert over[0] == pytest.approx(over[1], rel=1e-6)
    assert some.metrics["kld_mean"] == pytest.approx(over[1]["kld_mean"], rel=1e-6)
    assert whole["evaluation"]["metrics"]["kld_mean"] == pytest.approx(
        some.metrics["kld_mean"], rel=0.25
    )
    card = (tmp_path / "packages" / "far-four" / "README.md").read_text("utf-8")
    assert "tokens scored: every gate decided" in card
    (path,) = (tmp_path / "packages").rglob("board.json")
    assert {len(one.windows) for one in file.load(path.read_text("utf-8"))} >= {8}
    sides = [tmp_path / "packages" / f"far-{name}" for name in ("four", "all")]
    code, out, err = run("diff", *sides, "--json")
    assert code == 0, err
    (pair,) = json.loads(out)["pairs"]
    verdicts = {figure["metric"]: figure["verdict"] for figure in pair["figures"]}
    assert verdicts["kld_mean"] == "same"
    assert "kld_max" not in verdicts
    code, _, err = run("verify", tmp_path / "packages" / "far-four")
    assert code == 0, err
    code, out, err = run("measure", tmp_path / "packages" / "far-four", "--json")
    assert code == 0, err
    (there,) = json.loads(out)["entries"]
    assert there["windows"] == told["windows"]
