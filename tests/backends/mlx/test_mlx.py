"""MLX: options and rules, equality with mlx-lm's own conversion, fidelity, known traps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from testing.checkpoints import LONGROPE, source, tie
from testing.drive import drive, facts_of, section
from testing.shapes import phi3

from phipipe.backends import mlx, rules
from phipipe.backends.base import Job
from phipipe.backends.mlx.sizes import MIXED
from phipipe.hub import take
from phipipe.models.checkpoint import Checkpoint

DRIVER = Path(__file__).parent / "driver.py"

TINY = take.BUILTIN_MODELS["tiny-phi3"]


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver found out in the toolchain's Python, against logits of transformers."""
    root = tmp_path_factory.mktemp("mlx")
    source(root / "source")
    source(root / "longrope", **LONGROPE)
    tie(source(root / "tied", tie_word_embeddings=True))
    text = take.ASSETS / "stories" / "evaluation.txt"
    drive(
        python_of("torch"),
        "-m",
        "testing.reference",
        root,
        text,
        "400",
        "source",
        "longrope",
        "tied",
    )
    return facts_of(python_of("mlx"), DRIVER, root)


def recipe(precision: str = "int4", window: int = 512, context: int | None = None) -> Any:
    evaluate = SimpleNamespace(window=window)
    return SimpleNamespace(
        precision=precision,
        backend="mlx",
        evaluate=evaluate,
        context=context,
        weights=SimpleNamespace(learn=None),
    )


def checkpoint(**changes: Any) -> Checkpoint:
    return phi3({"torch_dtype": "bfloat16"}, **{"parameters": 10_000_000, **changes})


def advice(
    precision: str, shape: Any = None, window: int = 512, context: int | None = None, **options: Any
) -> list[tuple[str, str]]:
    found = rules.check(
        Job(recipe(precision, window, context), mlx.Options(**options), shape or checkpoint()),
        mlx.RULES,
    )
    return [(entry.rule, entry.level) for entry in found]


def test_a_qwen2_with_heads_of_another_width_is_refused() -> None:
    qwen2 = checkpoint(model_type="qwen2")
    assert advice("fp16", qwen2) == []
    wider = checkpoint(model_type="qwen2", head_size=2 * qwen2.head_size)
    assert advice("fp16", wider) == [("X09", "error")]
    assert advice("fp16", checkpoint(model_type="qwen3", head_size=2 * qwen2.head_size)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 7},
        {"group_size": 256},
        {"mode": "fp4"},
        {"mixed": "mixed_4_8"},
        {"dtype": "float32"},
        {"q": 1},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mlx.Options.model_validate(wrong)


@pytest.mark.parametrize(
    ("precision", "options", "rules"),
    [
        ("int4", {}, []),
        ("int4", {"bits": 3, "group_size": 32}, []),
        ("int4", {"mode": "mxfp4", "group_size": 32}, []),
        ("int4", {"mixed": "mixed_4_6"}, []),
        ("int8", {"mode": "mxfp8"}, []),
        ("fp16", {"dtype": "float16"}, []),
        ("int4", {"group_size": 16}, ["X01"]),
        ("int4", {"mode": "nvfp4", "group_size": 32}, ["X02"]),
        ("int4", {"mode": "mxfp4", "bits": 4}, ["X02"]),
        ("int8", {"mixed": "mixed_4_6"}, ["X03"]),
        ("int4", {"mixed": "mixed_4_6", "mode": "mxfp4"}, ["X03"]),
        ("fp16", {"mixed": "mixed_4_6"}, ["X03", "X14"]),
        ("int4", {"bits": 8}, ["X07"]),
        ("int8", {"bits": 6}, ["X07"]),
        ("int4", {"mode": "mxfp8"}, ["X07"]),
        ("fp32", {"group_size": 64}, ["X14"]),
    ],
)
def test_options_that_mlx_would_ignore_or_refuse_are_told(
    precision: str, options: dict[str, Any], rules: list[str]
) -> None:
    assert [rule for rule, _ in advice(precision, **options)] == rules


def test_layers_that_groups_do_not_divide_are_refused() -> None:
    assert advice("int4", checkpoint(hidden_size=3104)) == [("X08", "error")]
    assert advice("int4", checkpoint(hidden_size=3104), group_size=32) == []
    assert advice("fp16", checkpoint(hidden_size=3104)) == []


def test_what_mlx_computes_otherwise_is_told() -> None:
    assert advice("int4", checkpoint(sliding_window=256)) == [("M09", "error"), ("M15", "warning")]
    assert advice("int4", checkpoint(sliding_window=256), window=128) == [("M15", "warning")]
    assert advice("int4", checkpoint(sliding_window=256), window=128, context=256) == []
    long = checkpoint(context_length=131072, longrope=True)
    assert advice("int4", long) == [("M11", "warning")]
    assert advice("int4", long, window=8192) == [("M16", "warning")]


def test_all_but_fp32_share_one_conversion() -> None:
    def planned(precision: str) -> list[Any]:
        return mlx.steps(Job(recipe(precision), mlx.Options(), checkpoint(), {}))

    assert planned("fp16")[0] == planned("int8")[0] == planned("int4")[0]
    assert planned("fp16")[0].params["dtype"] == "bfloat16"
    assert planned("fp32")[0].params["dtype"] == "float32"


CASES = [
    "int4",
    "int4-32",
    "int4-128",
    "3-bit",
    "6-bit",
    "int8",
    "mxfp4",
    "nvfp4",
    "mxfp8",
    *MIXED,
]


@pytest.mark.parametrize("case", ["fp16", "fp32", *CASES])
def test_tensors_and_settings_equal_mlx_lms_own(facts: dict[str, Any], case: str) -> None:
    assert section(facts, "equality")[case] == [True, True]


@pytest.mark.parametrize("preset", MIXED)
def test_presets_are_mlx_lms_choice_at_every_depth(facts: dict[str, Any], preset: str) -> None:
    assert section(facts, "chosen")[preset] == []


def test_scoring_with_numpys_products_gives_the_same(facts: dict[str, Any]) -> None:
    found = section(facts, "products")
    assert len(found) == len(CASES) + 2
    assert max(found.values()) < 1e-4


def test_the_planned_size_is_that_of_the_files_of_mixed_schemes_too(facts: dict[str, Any]) -> None:
    found = section(facts, "sizes")
    assert {*MIXED, "int4"} <= set(found)
    for name, (planned, built) in found.items():
        assert planned == pytest.approx(built, rel=0.03), name
    assert found["mixed_4_6"][0] > 1.05 * found["int4"][0]


def test_a_large_model_needs_no_copy_in_16_bits(facts: dict[str, Any]) -> None:
    assert section(facts, "direct") == dict.fromkeys(("int4", "int8", "mxfp4", "mixed_3_6"), True)


@pytest.mark.parametrize(
    ("case", "limit"),
    [("fp32", 1e-6), ("fp16", 1e-6), ("int8", 1e-4), ("int4-32", 3e-3), ("int4", 5e-3)],
)
def test_logits_are_those_of_transformers(facts: dict[str, Any], case: str, limit: float) -> None:
    found = section(facts, "fidelity")[case]
    assert found["kld"] < limit
    assert found["again"]
    assert found["causal"] < 1e-3
    assert found["dtype"] == "float32"


def test_more_bits_are_closer(facts: dict[str, Any]) -> None:
    kld = {name: found["kld"] for name, found in section(facts, "fidelity").items()}
    assert (
        kld["int8"] < kld["6-bit"] < kld["int4-32"] < kld["int4"] < kld["int4-128"] < kld["3-bit"]
    )
    assert kld["int4"] < kld["mxfp4"]


def test_generation_follows_the_logits(facts: dict[str, Any]) -> None:
    found = section(facts, "fidelity")["fp32"]
    assert found["generated"] == found["chain"]


def test_tied_embeddings_are_exact(facts: dict[str, Any]) -> None:
    assert section(facts, "variants")["tied"] < 1e-6


def test_longropes_short_factors_are_built_in(facts: dict[str, Any]) -> None:
    """F2: as mlx-lm stands, it applies the long factors to every prompt."""
    found = section(facts, "variants")
    assert found["longrope"] < 1e-6
    assert found["raw"] > 1e-2


def test_what_was_stored_is_compared_with_what_was_asked(facts: dict[str, Any]) -> None:
    found = section(facts, "failures")
    assert found["fine"][0] == "nothing raised"
    for name, words in (
        ("bits", "8 bits"),
        ("group", "groups of 32"),
        ("lost", "unquantized"),
        ("quantized", "float32"),
    ):
        assert found[name][0] == "StepFailed", name
        assert words in found[name][1]


def test_builds_are_reproducible_and_keep_the_tokenizer(facts: dict[str, Any]) -> None:
    found = section(facts, "reproducible")
    assert found["same"]
    assert found["named"] == []
    assert len(found["kept"]) == 3


def test_the_tokenizer_is_the_sources(facts: dict[str, Any]) -> None:
    found = section(facts, "tokenizer")
    assert found["ids"][0] == found["ids"][1]
    assert found["text"] == "the fox"
    assert found["chat"] == "<|user|>\nhi<|end|>\n<|assistant|>\n"
