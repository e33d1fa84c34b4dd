"""What `eval --kv` says of a quantized cache."""

from __future__ import annotations

import re

import pytest
from testing import choices

from phipipe import backends
from phipipe.api import show
from phipipe.output.documents import Cache


def cache(kld: float, usual: float, *, is_usual: bool = False) -> Cache:
    return Cache(
        kind="q8",
        kept="8 bits in groups of 64",
        is_usual=is_usual,
        kld=kld,
        kld_stderr=5e-4,
        usual_kld=usual,
        usual_kld_stderr=4e-4,
        positions=4088,
    )


def numbers(text: str) -> list[str]:
    return re.findall(r"[0-9.e-]+(?= ±)", text)


def test_divergences_within_their_errors_are_told_apart() -> None:
    said = show.cache_words(cache(0.0011240, 0.0011210))
    usual, kept = map(float, numbers(said))
    assert kept > usual
    assert "1.00 times that" in said
    assert "(8 bits in groups of 64)" in said
    assert "(4,088 positions)" in said


def test_the_usual_cache_is_called_so() -> None:
    said = show.cache_words(cache(5.9e-5, 5.9e-5, is_usual=True))
    assert "the runtime's usual one" in said
    assert "times" not in said


def test_a_usual_cache_that_costs_nothing_has_no_ratio() -> None:
    assert "times" not in show.cache_words(cache(1e-5, 0.0))


@pytest.mark.parametrize(
    ("precision", "api", "usual"),
    [
        ("int8", "cpu", "q8"),
        ("int4", "cpu", "q8"),
        ("fp16", "cpu", None),
        ("int4", "intel-gpu", None),
    ],
)
def test_openvino_keeps_8_bits_by_itself_where_weights_have_few(
    precision: str, api: str, usual: str | None
) -> None:
    (build,) = choices.builds(f"precision={precision}", "backend=openvino", "quantize={}")
    assert backends.load("openvino").usual_cache(build.recipe, api) == usual


@pytest.mark.parametrize(("head", "group"), [(64, 64), (128, 64), (96, 32), (80, None)])
def test_mlx_has_groups_that_divide_a_head(head: int, group: int | None) -> None:
    assert backends.load("mlx").cache_group(head) == group


def test_other_caches_have_no_groups_of_ours() -> None:
    assert backends.load("llamacpp").cache_group(64) is None
