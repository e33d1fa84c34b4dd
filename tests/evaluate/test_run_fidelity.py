"""Two figures of one file: what it loses, and what its runtime adds by default."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe import backends
from phipipe.errors import GateFailed
from phipipe.evaluate import fidelity, gates, reference, reports, run_reports
from phipipe.evaluate.reports import Metrics
from phipipe.evaluate.run_reports import AsRun, joined

WINDOWS, WINDOW, VOCABULARY = 4, 8, 12
FIGURES = {"kld_mean": 0.02, "top1": 0.9}
SCORED = AsRun(metrics={"kld_run": 0.03}, stderr={"kld_run": 0.002}, positions=7)
HOW = "float16 arithmetic"

amounts = st.floats(0, 100, allow_nan=False)


@given(amounts, amounts)
def test_a_file_that_is_scored_as_it_runs_has_one_figure(kld: float, error: float) -> None:
    metrics = Metrics(metrics={"kld_mean": kld}, stderr={"kld_mean": error}, positions=5)
    found = joined(metrics, run_reports.SAME, None)
    assert found.metrics == {"kld_mean": kld, "kld_run": kld}
    assert found.stderr == {"kld_mean": error, "kld_run": error}
    assert found.run == reports.Run(how="", positions=5)


def test_a_run_of_its_own_stands_beside_the_file() -> None:
    found = joined(Metrics(metrics=FIGURES, positions=70), HOW, SCORED)
    assert found.metrics == {**FIGURES, "kld_run": 0.03}
    assert found.stderr == {"kld_run": 0.002}
    assert found.run == reports.Run(how=HOW, positions=7)
    assert Metrics.model_validate(found.as_json()) == found


@pytest.mark.parametrize(("how", "scored"), [(None, None), (None, SCORED), (HOW, None)])
def test_nothing_is_made_up_where_nobody_can_tell(how: str | None, scored: AsRun | None) -> None:
    metrics = Metrics(metrics=FIGURES)
    assert joined(metrics, how, scored) == metrics


# --- the step


class Sharper:
    """A runtime whose logits are those of the original, times something."""

    def __init__(self, logits: Any, factor: float) -> None:
        self._logits, self._factor = logits, factor
        self.seen: list[list[int]] = []
        self.closed = False

    def logits(self, tokens: Sequence[int]) -> Any:
        self.seen.append(list(tokens))
        return (self._logits[len(self.seen) - 1] * self._factor).astype(np.float32)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A baseline of random numbers."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(WINDOWS, WINDOW, VOCABULARY)).astype(np.float32)
    folder = tmp_path / "baseline"
    folder.mkdir()
    np.save(folder / "tokens.npy", random.integers(0, VOCABULARY, (WINDOWS, WINDOW), np.int32))
    np.save(folder / "logprobs.npy", reference.log_softmax(logits.copy()))
    told = {"tokens": 32, "window": WINDOW, "skip": 2, "ppl": 5.0, "parity_ids": [], "chats": []}
    (folder / "baseline.json").write_text(json.dumps(told))
    return {"artifact": tmp_path, "baseline": folder}


def run(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, factor: float, **params: Any
) -> tuple[AsRun, Sharper, list[Any]]:
    logits = np.load(inputs["baseline"] / "logprobs.npy")
    opened, runtime = list[Any](), Sharper(logits, factor)
    face = SimpleNamespace(open_run=lambda *words: opened.append(words) or runtime)
    monkeypatch.setattr(backends, "load", lambda name: face)
    out = inputs["artifact"] / "out"
    out.mkdir()
    fidelity.compare_run(inputs, out, {"backend": "some", "tokens": 10**6, **params})
    return reports.read(AsRun, out), runtime, opened


def test_a_run_is_scored_on_every_position_that_counts(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, runtime, opened = run(inputs, monkeypatch, 1.5)
    assert report.positions == WINDOWS * (WINDOW - 1 - 2)
    assert report.metrics["kld_run"] > report.stderr["kld_run"] > 0
    assert runtime.closed
    assert opened == [(inputs["artifact"], "cpu", "")]


def test_a_run_as_the_original_has_no_divergence(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _, _ = run(inputs, monkeypatch, 1.0)
    assert report.metrics["kld_run"] < 1e-6


def test_fewer_tokens_are_whole_windows_from_the_start(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"tokens": 2 * WINDOW + 3, "api": "metal", "cache": "q4"}
    report, runtime, opened = run(inputs, monkeypatch, 1.5, **words)
    assert runtime.seen == np.load(inputs["baseline"] / "tokens.npy")[:2].tolist()
    assert report.positions == 2 * (WINDOW - 1 - 2)
    assert opened == [(inputs["artifact"], "metal", "q4")]


# --- gates


def judged(folder: Path, knob: str | None, scored: AsRun | None, limit: float) -> Any:
    inputs = {name: folder / name for name in ("metrics", "speed", "run", "out")}
    for place in inputs.values():
        place.mkdir()
    reports.write(inputs["metrics"], Metrics(metrics=FIGURES))
    reports.write(inputs["speed"], reports.Speed(metrics={}))
    if scored is None:
        del inputs["run"]
    else:
        reports.write(inputs["run"], scored)
    out = inputs.pop("out")
    gates.check_gates(inputs, out, {"gates": {"kld_run": {"max": limit}}, "knob": knob})
    return json.loads((out / "gates.json").read_text())


@pytest.mark.parametrize(
    ("knob", "scored", "value"), [(HOW, SCORED, 0.03), (run_reports.SAME, None, 0.02)]
)
def test_a_gate_may_name_a_run(
    tmp_path: Path, knob: str, scored: AsRun | None, value: float
) -> None:
    (verdict,) = judged(tmp_path, knob, scored, 0.04)
    assert (verdict["metric"], verdict["value"]) == ("kld_run", value)


def test_a_run_that_is_worse_than_its_file_fails_its_gate(tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match=r"`kld_run` is 0\.03, the recipe wants max 0\.025"):
        judged(tmp_path, HOW, SCORED, 0.025)


def test_a_run_that_nobody_scored_fails_its_gate(tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="`kld_run` was not measured"):
        judged(tmp_path, None, None, 1.0)
