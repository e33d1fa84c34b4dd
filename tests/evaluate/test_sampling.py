"""The order of windows, what is told of them, and builds that scored different ones."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe import backends
from phipipe.errors import SourceError
from phipipe.evaluate import chosen, fidelity, reference, reports, sampling, sanity
from phipipe.evaluate.reports import Metrics, Sampling
from phipipe.models import tokenizer

WINDOWS, WINDOW, VOCABULARY = 8, 32, 12


# --- order


@given(st.integers(0, 300), st.integers(0, 300))
def test_fewer_windows_come_in_the_same_order_as_among_more(a: int, b: int) -> None:
    few, many = sorted((a, b))
    order = sampling.order(many)
    assert sorted(order) == list(range(many))
    assert [i for i in order if i < few] == sampling.order(few)


def test_the_order_is_fixed_for_good() -> None:
    # results of years are compared by it: a change makes all of them incomparable
    assert sampling.order(8) == ORDER
    assert sampling.order(1) == [0]


def test_the_order_favours_no_part_of_the_text() -> None:
    first = sampling.order(1000)[:100]
    assert np.mean(first) == pytest.approx(499.5, abs=3 * 1000 / math.sqrt(12 * 100))


ORDER = [1, 6, 5, 7, 4, 2, 0, 3]


# --- windows in common


def told(windows: Sequence[int], seed: int = 0, reason: str = "decided") -> Sampling:
    """Figures that depend on the window alone, so that both sides of a pair have them."""
    figures: dict[str, list[float]] = {name: [] for name in sampling.FIGURES}
    for window in windows:
        random = np.random.default_rng((seed, window))
        for name, value in zip(sampling.FIGURES, random.uniform(0.01, 1, 5), strict=True):
            figures[name].append(float(value))
    return Sampling(
        tokens=512 * len(windows), cap=4096, reason=reason, windows=list(windows), figures=figures
    )


places = st.lists(st.integers(0, 20), min_size=1, unique=True)


@given(places, places)
def test_two_builds_are_compared_over_the_windows_of_both(a: list[int], b: list[int]) -> None:
    both = sorted(set(a) & set(b))
    windows = sampling.shared([told(a), told(b)])
    if set(a) == set(b):
        assert windows is None
        return
    assert windows == tuple(both)
    if both:  # of one build, whatever else it scored
        assert sampling.over(told(a), both) == sampling.over(told(b), both)


def test_figures_over_all_windows_are_those_of_the_whole() -> None:
    random = np.random.default_rng(1)
    names = ("kld", "nll", "nll_baseline", "dp", "top1")
    positions = {n: random.uniform(0.1, 1, (5, 40)).astype(np.float32) for n in names}
    choice = chosen.Chosen(windows=range(5), told=5)
    one = choice.sampling(positions, 41)
    assert one is not None
    metrics, errors = sampling.over(one, range(5))
    whole, _ = fidelity.summarise(positions)
    for name, value in metrics.items():
        assert value == pytest.approx(whole[name], rel=1e-9), name
    between = positions["kld"].astype(np.float64).mean(1).std(ddof=1) / math.sqrt(5)
    assert errors["kld_mean"] == pytest.approx(between)


def test_a_build_that_says_nothing_of_its_windows_compares_with_its_like_alone() -> None:
    plain = Metrics(metrics={"kld_mean": 0.1, "kld_max": 3.0})
    some = plain.model_copy(update={"sampling": told([1, 2])})
    others = plain.model_copy(update={"sampling": told([2, 5])})
    strangers = plain.model_copy(update={"sampling": told([6])})
    assert sampling.alike(plain, plain) == (plain, plain)
    assert sampling.alike(some, some) == (some, some)
    assert sampling.alike(plain, some) is None
    assert sampling.alike(some, strangers) is None
    paired = sampling.alike(some, others)
    assert paired is not None
    expected = sampling.over(told([2]), [2])[0]["kld_mean"]
    assert [one.metrics["kld_mean"] for one in paired] == [expected, expected]
    assert all("kld_max" not in one.metrics for one in paired)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"windows": [1, 1]}, "a window was scored twice"),
        ({"windows": [1, 2, 3]}, "not every window has all figures"),
        ({"figures": {}}, "not every window has all figures"),
        ({"figures": {**told([1, 2]).figures, "nll": [1.0, 1e9]}}, "a perplexity is no number"),
    ],
)
def test_what_cannot_be_is_found(changed: dict[str, Any], words: str) -> None:
    assert sampling.problem(told([1, 2])) is None
    assert sampling.problem(told([1, 2]).model_copy(update=changed)) == words


# --- the step


class Noisy:
    """A runtime whose logits are those of the original, with noise that grows with the window."""

    def __init__(self, logits: Any, scale: Any) -> None:
        self._logits, self._scale, self.asked = logits, scale, []

    def logits(self, tokens: Sequence[int]) -> Any:
        i = int(tokens[0])
        self.asked.append(i)
        noise = np.random.default_rng(i).normal(0, self._scale[i], (len(tokens), VOCABULARY))
        return (self._logits[i] + noise).astype(np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    baseline, artifact = tmp_path / "baseline", tmp_path / "artifact"
    baseline.mkdir()
    artifact.mkdir()
    (artifact / "model.bin").write_bytes(b"x" * 100)
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (WINDOWS, WINDOW)).astype(np.int32)
    tokens[:, 0] = range(WINDOWS)  # by which the runtime knows the window
    logits = np.random.default_rng(3).normal(0, 2, (WINDOWS, WINDOW, VOCABULARY))
    np.save(baseline / "tokens.npy", tokens)
    np.save(baseline / "logprobs.npy", reference.log_softmax(logits.astype(np.float32)))
    report = reports.Baseline(
        tokens=tokens.size, window=WINDOW, ppl=5.0, parity_ids=[], chats=[], readings=[]
    )
    reports.write(baseline, report)
    return {"artifact": artifact, "baseline": baseline}


@pytest.fixture
def compared(inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the step: its report, its positions, and the windows that the runtime was asked for."""
    logits = np.load(inputs["baseline"] / "logprobs.npy")

    def run(
        scale: Sequence[float] = (0.2,) * WINDOWS, **params: Any
    ) -> tuple[Metrics, Any, list[int]]:
        runtime = Noisy(logits, scale)
        face = SimpleNamespace(to_answer=lambda artifact, api: runtime)
        monkeypatch.setattr(backends, "load", lambda name: face)
        monkeypatch.setattr(sanity, "check", lambda *_: (reports.Sanity(), []))
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        fidelity.compare(inputs, out, {"backend": "x", "parameters": 100, **params})
        return reports.read(Metrics, out), dict(np.load(out / "positions.npz")), runtime.asked

    return run


def until(cap: int = WINDOWS * WINDOW, **gates: dict[str, float]) -> dict[str, Any]:
    return {"until": {"tokens": cap, "gates": gates}}


def test_a_clear_case_ends_early_and_says_why(
    compared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phipipe.evaluate.sequential.RELATIVE_ERROR", 0.3)  # of so few positions
    found, positions, asked = compared(**until(kld_mean={"max": 1.0}))
    assert asked == sampling.order(WINDOWS)[:4]
    told = found.sampling
    assert told is not None
    assert (told.windows, told.tokens, told.cap) == (asked, 4 * WINDOW, WINDOWS * WINDOW)
    assert told.reason == "decided"
    assert 0 < float(told.relative_error or 0) < 0.3
    assert found.positions == 4 * (WINDOW - 1)
    assert positions["windows"].tolist() == asked
    assert positions["kld"].mean(1) == pytest.approx(np.array(told.figures["kld"]), rel=1e-6)
    assert found.metrics["kld_mean"] == pytest.approx(float(positions["kld"].mean()), rel=1e-6)
    assert sampling.words(told) == (
        "128 of at most 256 tokens scored: every gate decided and the error of the KL divergence "
        "below 5 %"
    )


def test_an_open_gate_takes_all_windows(compared: Any) -> None:
    whole, _, _ = compared()
    found, _, asked = compared(**until(kld_mean={"max": whole.metrics["kld_mean"] * 1.01}))
    assert asked == sampling.order(WINDOWS)
    assert found.sampling.reason == "cap"
    for name, value in whole.metrics.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-6), name


def test_a_text_that_ends_before_the_cap_says_so(compared: Any) -> None:
    found, _, _ = compared(**until(cap=4096, kld_p99={"max": 1.0}))
    assert (found.sampling.reason, found.sampling.cap) == ("text", WINDOWS * WINDOW)


def test_of_a_longer_baseline_the_first_windows_are_drawn_from(compared: Any) -> None:
    _, _, asked = compared(**until(cap=3 * WINDOW))
    assert asked == sampling.order(3)


def test_a_number_of_tokens_leaves_the_report_as_it_was(compared: Any) -> None:
    found, positions, asked = compared()
    assert asked == list(range(WINDOWS))
    assert "sampling" not in found.as_json()
    assert set(positions) == {"kld", "nll", "nll_baseline"}
    told, _, _ = compared(told=3 * WINDOW)
    assert told.sampling.windows == [0, 1, 2]
    assert told.sampling.reason == "asked"
    assert told.metrics == found.metrics
    assert told.sampling.relative_error is None


def test_what_is_kept_for_a_device_is_scored_in_the_same_order(
    compared: Any, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    reference.keep(inputs, kept, {"top": VOCABULARY - 2, "tokens": reference.TOKENS})
    whole, _, order = compared(**until())
    inputs["baseline"] = kept
    bound, _, again = compared(**until())
    assert again == order
    assert bound.metrics["kld_mean"] <= whole.metrics["kld_mean"] * (1 + 1e-6)


def test_a_run_is_scored_on_the_first_of_those_windows(
    compared: Any, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Noisy(np.load(inputs["baseline"] / "logprobs.npy"), [0.2] * WINDOWS)
    face = SimpleNamespace(open_run=lambda artifact, api, cache: runtime)
    monkeypatch.setattr(backends, "load", lambda name: face)
    fidelity.compare_run(inputs, tmp_path, {"backend": "x", "tokens": 2 * WINDOW, **until()})
    assert runtime.asked == sampling.order(WINDOWS)[:2]
    run = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert run["positions"] == 2 * (WINDOW - 1)


# --- the text


@pytest.mark.parametrize(("words", "windows"), [(1000, 4), (200, 3), (64, 1)])
def test_a_text_may_have_fewer_tokens_than_the_cap(
    monkeypatch: pytest.MonkeyPatch, words: int, windows: int
) -> None:
    reader = SimpleNamespace(encode=lambda text: list(range(words)))
    monkeypatch.setattr(tokenizer, "of_source", lambda source: reader)
    params = {"tokens": 256, "window": 64, "at_most": True}
    assert fidelity._tokens(Path(), "", params).shape == (windows, 64)


def test_a_text_without_one_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SimpleNamespace(encode=lambda text: list(range(63)))
    monkeypatch.setattr(tokenizer, "of_source", lambda source: reader)
    params = {"tokens": 256, "window": 64, "at_most": True}
    with pytest.raises(SourceError, match="has 63 tokens, the recipe asks for 64") as caught:
        fidelity._tokens(Path(), "", params)
    assert caught.value.hint == "lower `evaluate.window` or give a longer text"
