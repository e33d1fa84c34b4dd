"""What travels with a package says what the whole baseline would, as far as it goes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe.errors import StepFailed
from phipipe.evaluate import reference
from phipipe.evaluate.reference import log_softmax

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def drawn(
    seed: int, vocabulary: int, spread: float, windows: int = 2, window: int = 6
) -> tuple[Floats, Floats, Ints]:
    """Log-probabilities and an artifact's logits [windows, window, vocabulary], tokens [windows,
    window]."""
    generator = np.random.default_rng(seed)
    logits = (generator.normal(size=(windows, window, vocabulary)) * spread).astype(np.float32)
    other = logits + generator.normal(size=logits.shape).astype(np.float32)
    return (
        log_softmax(logits),
        other,
        generator.integers(0, vocabulary, (windows, window)).astype(np.int32),
    )


def kept(root: Path, logp: Floats, tokens: Ints, top: int, limit: int = 10**6) -> tuple[Path, Path]:
    """A baseline's folder, and what ``keep`` keeps of it."""
    whole, part = root / "baseline", root / "reference"
    whole.mkdir(exist_ok=True)
    part.mkdir(exist_ok=True)
    np.save(whole / "logprobs.npy", logp)
    np.save(whole / "tokens.npy", tokens)
    (whole / "baseline.json").write_text(json.dumps({"skip": 0}))
    reference.keep({"baseline": whole}, part, {"top": top, "tokens": limit})
    return whole, part


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(3, 90),
    st.integers(1, 40),
    st.sampled_from([0.01, 1.0, 8.0, 60.0]),
)
def test_it_is_a_lower_bound_and_all_else_is_equal(
    tmp_path_factory: pytest.TempPathFactory, seed: int, vocabulary: int, top: int, spread: float
) -> None:
    logp, logits, tokens = drawn(seed, vocabulary, spread)
    folders = kept(tmp_path_factory.mktemp("kept"), logp, tokens, top)
    for i in range(len(tokens)):
        whole, part = (
            reference.scores_of(folder)(i, logits[i].copy(), tokens[i]) for folder in folders
        )
        assert (part["kld"] <= whole["kld"] * 1.001 + 1e-5).all()
        for name in ("top1", "nll", "nll_baseline", "dp"):
            np.testing.assert_allclose(part[name], whole[name], rtol=1e-5, atol=1e-6)
        if top >= vocabulary - 1:
            np.testing.assert_allclose(part["kld"], whole["kld"], rtol=1e-3, atol=1e-5)


def test_it_is_a_good_bound_where_few_tokens_are_likely(tmp_path: Path) -> None:
    logp, logits, tokens = drawn(1, 2000, 4.0)
    whole, part = (
        reference.scores_of(f)(0, logits[0].copy(), tokens[0])
        for f in kept(tmp_path, logp, tokens, 64)
    )
    assert part["kld"].mean() > 0.9 * whole["kld"].mean()


def test_an_artifact_that_is_the_original_has_no_divergence(tmp_path: Path) -> None:
    logp, _, tokens = drawn(2, 300, 3.0)
    _, part = kept(tmp_path, logp, tokens, 16)
    found = reference.scores_of(part)(1, logp[1].copy(), tokens[1])
    assert found["kld"].max() < 1e-6
    assert found["top1"].all()


def test_equally_likely_tokens_are_kept_in_order(tmp_path: Path) -> None:
    logp = log_softmax(np.zeros((1, 4, 50), np.float32))
    tokens = np.zeros((1, 4), np.int32)
    _, part = kept(tmp_path, logp, tokens, 50)
    assert reference.scores_of(part)(0, logp[0].copy(), tokens[0])["top1"].all()


def test_it_is_small_and_the_same_every_time(tmp_path: Path) -> None:
    logp, _, tokens = drawn(3, 500, 2.0, windows=5, window=32)
    _, part = kept(tmp_path, logp, tokens, 8, limit=70)
    with np.load(part / "top.npz") as archive:
        assert archive["ids"].shape == (2, 31, 8)  # 70 tokens are two windows of 32
    first = (part / "top.npz").read_bytes()
    kept(tmp_path, logp, tokens, 8, limit=70)
    assert (part / "top.npz").read_bytes() == first


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    logp, logits, tokens = drawn(4, 40, 2.0)
    for folder in kept(tmp_path, logp, tokens, 8):
        with pytest.raises(StepFailed, match="predicts 39 tokens, the source model 40"):
            reference.scores_of(folder)(0, logits[0, :, :39].copy(), tokens[0])
