"""The numbers that decide what ships, checked against their definitions in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import oracle

from phipipe.errors import GateFailed, SourceError, StepFailed
from phipipe.evaluate import fidelity, gates, reference, reports, sanity
from phipipe.evaluate.reports import Baseline, Parity, Rounding

Array = npt.NDArray[np.float32]


def made(
    seed: int, n: int = 16, vocabulary: int = 50, scale: float = 3.0
) -> tuple[Array, Array, npt.NDArray[np.int32]]:
    random = np.random.default_rng(seed)
    a, b = (random.normal(0, scale, (n, vocabulary)).astype(np.float32) for _ in range(2))
    return a, b, random.integers(0, vocabulary, n).astype(np.int32)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 20))
def test_every_position_agrees_with_the_definition_in_float64(seed: int, scale: float) -> None:
    a, b, tokens = made(seed, scale=scale)
    p, q = oracle.log_softmax(a)[:-1], oracle.log_softmax(b)[:-1]
    rows = np.arange(len(tokens) - 1)
    found = reference.score(reference.log_softmax(a.copy()), b.copy(), tokens)
    np.testing.assert_allclose(found["kld"], (np.exp(p) * (p - q)).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["nll"], -q[rows, tokens[1:]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found["dp"], np.exp(q[rows, tokens[1:]]) - np.exp(p[rows, tokens[1:]]), atol=1e-5
    )
    assert (found["top1"] == (p.argmax(-1) == q.argmax(-1))).all()


def test_a_model_compared_with_itself_has_no_divergence() -> None:
    a, _, tokens = made(1)
    metrics, _ = fidelity.summarise(
        reference.score(reference.log_softmax(a.copy()), a.copy(), tokens)
    )
    assert metrics["kld_max"] < 1e-6
    assert metrics["top1"] == 1
    assert metrics["ppl_ratio"] == pytest.approx(1, abs=1e-6)


def test_padding_beyond_the_source_vocabulary_is_not_a_difference() -> None:
    a, _, tokens = made(2)
    padded = np.concatenate([a, np.full((len(a), 14), -30, np.float32)], axis=1)
    found = reference.score(reference.log_softmax(a.copy()), padded, tokens)
    assert found["kld"].max() < 1e-6


def test_a_smaller_vocabulary_is_an_error() -> None:
    a, b, tokens = made(3)
    with pytest.raises(StepFailed, match="predicts 40 tokens"):
        reference.score(reference.log_softmax(a), b[:, :40], tokens)


def test_perplexity_is_the_exponential_of_the_mean_log_likelihood() -> None:
    positions = {
        name: np.array([[1.0, 3.0]], np.float32)
        for name in ("kld", "nll", "nll_baseline", "dp", "top1")
    }
    metrics, errors = fidelity.summarise(positions)
    assert metrics["ppl"] == pytest.approx(np.exp(2))
    assert metrics["ppl_ratio"] == pytest.approx(1)
    assert errors["kld_mean"] == pytest.approx(1.0)


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_fail(spoil: float) -> None:
    logits = np.zeros((4, 5), np.float32)
    logits[2, 3] = spoil
    for whose in (fidelity.ORIGINAL, fidelity.BUILD):
        with pytest.raises(StepFailed, match=f"the {whose}'s predictions are not finite") as caught:
            fidelity._finite(logits, 4, whose)
        assert caught.value.hint


def test_missing_positions_fail() -> None:
    with pytest.raises(StepFailed):
        fidelity._finite(np.zeros((1, 5), np.float32), 4, fidelity.BUILD)


def judged(tmp_path: Path, **limits: dict[str, float]) -> Path:
    for name, metrics in (("metrics", {"kld_mean": 0.02, "top1": 0.9}), ("speed", {"ttft_s": 0.1})):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text(
            json.dumps({"metrics": metrics, "sanity": SANE}), "utf-8"
        )
    (tmp_path / "out").mkdir()
    inputs = {"metrics": tmp_path / "metrics", "speed": tmp_path / "speed"}
    gates.check_gates(inputs, tmp_path / "out", {"gates": limits})
    return tmp_path / "out" / "gates.json"


SANE = {"tokenizer_equal": True, "chat_template_equal": True}


def test_gates_that_hold_are_recorded(tmp_path: Path) -> None:
    verdicts = json.loads(
        judged(tmp_path, kld_mean={"max": 0.05}, top1={"min": 0.5, "max": 1}).read_text("utf-8")
    )
    assert [v["metric"] for v in verdicts] == ["kld_mean", "top1"]
    assert all(v["passed"] for v in verdicts)


def test_every_failing_gate_is_named_with_limit_and_value(tmp_path: Path) -> None:
    with pytest.raises(GateFailed) as caught:
        judged(tmp_path, kld_mean={"max": 0.01}, top1={"min": 0.95})
    assert caught.value.exit_code == 7
    assert "`kld_mean` is 0.02, the recipe wants max 0.01" in caught.value.message
    assert "`top1` is 0.9, the recipe wants min 0.95" in caught.value.message


def test_a_metric_that_was_not_measured_fails_closed(tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="was not measured"):
        judged(tmp_path, decode_tokens_per_s={"min": 1})


@pytest.mark.parametrize(
    ("value", "passes"), [(9e-7, True), (1e-6, True), (1.1e-6, False), (float("inf"), False)]
)
def test_a_conversion_that_changed_the_model_stops_the_build(
    tmp_path: Path, value: float, passes: bool
) -> None:
    assert parity_passes({"metrics": scored(tmp_path, value)}, tmp_path) == passes


@pytest.mark.parametrize(
    ("rounding", "value", "passes"),
    [
        (0.0, 1.1e-6, False),
        (1e-4, 2e-4, True),  # a model that bfloat16 moves so far may come back so far
        (1e-4, 5e-4, False),
        (1e-8, 5e-6, False),  # one that it hardly moves may not
    ],
)
def test_the_models_own_rounding_decides_what_a_conversion_to_16_bits_may_change(
    tmp_path: Path, rounding: float, value: float, passes: bool
) -> None:
    reports.write(tmp_path, Rounding(dtype="bfloat16", kld_mean=rounding))
    inputs = {"metrics": scored(tmp_path, value), "rounding": tmp_path}
    assert parity_passes(inputs, tmp_path) == passes


def scored(folder: Path, kld_mean: float) -> Path:
    report = {"metrics": {"kld_mean": kld_mean}, "sanity": {"tokenizer_equal": True}}
    (folder / "metrics.json").write_text(json.dumps(report), "utf-8")
    return folder


def parity_passes(inputs: Mapping[str, Path], folder: Path) -> bool:
    """Whether the conversion counts as equal."""
    try:
        gates.check_parity(inputs, folder, {})
    except StepFailed as failure:
        return "conversion itself" not in failure.message
    parity = reports.read(Parity, folder)
    return parity.kld_mean <= parity.limit


MISREAD = {"kind": "chat", "text": "<|user|>\\nHi", "expected": [5, 13, 7], "got": [5, 7]}


def judge_tokenizer(folder: Path, sanity: dict[str, Any], **params: Any) -> None:
    report = {"metrics": {"kld_mean": 0.0}, "sanity": sanity}
    (folder / "metrics.json").write_text(json.dumps(report), "utf-8")
    (folder / "out").mkdir(exist_ok=True)
    gates.check_parity({"metrics": folder}, folder / "out", params)


def test_a_conversion_with_another_tokenizer_stops_the_build(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="token ids") as caught:
        judge_tokenizer(tmp_path, {"tokenizer_equal": False})
    assert "accept: [tokenizer]" in str(caught.value.hint)


def test_a_difference_in_chats_alone_is_told_as_one_of_chats(tmp_path: Path) -> None:
    sanity = {"tokenizer_equal": False, "tokenizer_difference": MISREAD}
    with pytest.raises(StepFailed) as caught:
        judge_tokenizer(tmp_path, sanity)
    assert caught.value.message.endswith(
        r"it reads a chat's text `<|user|>\nHi` as tokens [5, 7], not [5, 13, 7]"
    )


def test_a_recipe_accepts_a_runtimes_own_tokenizer(tmp_path: Path) -> None:
    sanity = {"tokenizer_equal": False, "tokenizer_difference": MISREAD}
    judge_tokenizer(tmp_path, sanity, accept=["tokenizer"])
    assert (tmp_path / "out" / "parity.json").is_file()


class Dropping:
    """A tokenizer of a runtime that loses what it is told to."""

    def __init__(self, lost: str) -> None:
        self._lost = lost

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text.replace(self._lost, "")]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        return ""


def test_an_artifact_is_asked_what_the_original_was(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def generate(ids: list[int], limit: int) -> list[int]:
        asked.append(ids)
        return [97, 98]

    chats = [
        {"prompt": "a", "rendered": "", "ids": [1], "answer": [97, 99], "text": "ac"},
        {"prompt": "b", "rendered": "", "ids": [2], "answer": [], "text": ""},
    ]
    parity = [ord(letter) for letter in sanity.PARITY_TEXT]
    stored: dict[str, Any] = {"tokens": 1, "window": 1, "ppl": 1.0, "parity_ids": parity}
    backend: Any = SimpleNamespace(tokenizer=lambda folder: Dropping("\0"))
    runtime: Any = SimpleNamespace(generate=generate)
    for asking, prompts, agreement in ((chats, [[1]], 0.5), (chats[1:], [], None)):
        asked.clear()
        baseline = Baseline.model_validate(stored | {"chats": asking})
        found, answers = sanity.check(backend, runtime, tmp_path, baseline)
        assert asked == prompts
        assert found.greedy_agreement == agreement
        assert [answer.text for answer in answers] == ["ab"] * len(prompts)
        assert found.chat_template_equal


@pytest.mark.parametrize(
    ("lost", "kind", "text"),
    [
        *[("\0", None, None), ("\n", "text", r"a\n"), ("|>\n", "chat", r"<|u|>\n")],
        ("\u0301", "marks", "e\u0301"),
    ],
)
def test_the_shortest_text_that_differs_is_told(
    lost: str, kind: str | None, text: str | None
) -> None:
    read = [("text", "a"), ("text", "one\ntwo"), ("text", "a\n"), ("chat", "<|u|>\n")]
    read.append(("text", "e\u0301"))
    ids = {text: [ord(letter) for letter in text] for _, text in read}
    readings = [{"kind": kind, "text": text, "ids": ids[text]} for kind, text in read]
    baseline = Baseline.model_validate(
        {
            **{"tokens": 1, "window": 1, "ppl": 1.0, "chats": [], "readings": readings},
            "parity_ids": [ord(letter) for letter in sanity.PARITY_TEXT],
        }
    )
    found = sanity.difference(Dropping(lost), baseline)
    assert (found and found.kind, found and found.text) == (kind, text)


@pytest.mark.parametrize(
    ("ids", "share"), [([1, 2, 3, 4, 5], 0.0), ([7] * 13, 0.9), ([], 0.0), ([1, 2], 0.0)]
)
def test_repetition_is_the_share_of_repeated_four_grams(ids: list[int], share: float) -> None:
    assert sanity.repetition(ids) == pytest.approx(share)


@pytest.mark.parametrize(
    ("has", "hint"),
    [(2303, "give a text of 3072 tokens or more"), (2304, "set `calibrate.tokens` to 256 at most")],
)
def test_a_text_with_too_little_to_judge_by_says_what_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: int, hint: str
) -> None:
    (tmp_path / "text.txt").write_text("a text, whatever it says", "utf-8")
    encoded = SimpleNamespace(encode=lambda text: list(range(has)))
    monkeypatch.setattr(fidelity.tokenizer, "of_source", lambda source: encoded)
    params = {"tokens": 2048, "window": 128, "first": 1024}
    with pytest.raises(SourceError, match="judge what was learned") as caught:
        fidelity.calibration({"source": tmp_path, "text": tmp_path}, tmp_path, params)
    assert (caught.value.hint or "").startswith(hint)


def test_size_counts_every_file_and_weights_apart(tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(bytes(1000))
    (tmp_path / "tokenizer.json").write_bytes(bytes(24))
    found = fidelity.size(tmp_path, parameters=2000)
    assert found["bits_per_weight"] == pytest.approx(4.0)
    assert found["size_gib"] == pytest.approx(1024 / 2**30)


def test_a_package_has_the_size_of_its_artifact(tmp_path: Path) -> None:
    for name in ("model.onnx.data", "tokenizer.json", "parts/README.md", "parts/recipe.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
    alone = fidelity.size(tmp_path, parameters=2000)
    names = ("README.md", "LICENSE", "LICENSE.txt", "NOTICE.md", "recipe.yaml", "manifest.json")
    for name in (*names, "SHA256SUMS", "reference/top.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(77))
    assert fidelity.size(tmp_path, parameters=2000) == alone
    assert alone["size_gib"] * 2**30 == 4000
