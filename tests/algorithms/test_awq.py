"""AWQ's scales: the rounding they are judged by, their exponents, where they fold. No toolchain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from testing.shapes import phi3

from phipipe.algorithms import awq, folds
from phipipe.algorithms.folds import Fold
from phipipe.models import layouts
from phipipe.models.layouts import LAYOUTS

# An eighth of the largest weight is the step: it must be a normal number, too.
USUAL = st.floats(-(2.0**10), 2.0**10, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-120)
WEIGHTS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=USUAL
)
MEANS = arrays.arrays(np.float32, st.integers(1, 30), elements=st.floats(0, 2.0**14, width=32))
NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm")


@given(weight=WEIGHTS, group=st.sampled_from([1, 4, 32, 0]))
def test_rounding_is_a_grid_of_sixteen_levels_that_the_largest_weight_sets(
    weight: Any, group: int
) -> None:
    dense = awq.rounded(weight, group)
    group = group or weight.shape[1]
    for row, made in zip(weight, dense, strict=True):
        for start in range(0, len(row), group):
            part, levels = row[start : start + group], made[start : start + group]
            largest = part[np.abs(part).argmax()]
            step = abs(float(largest)) / 8
            assert np.abs(levels).max() == abs(largest), "the largest weight is a level itself"
            # one end of the grid has seven levels: there the error is at most a whole step
            assert np.abs(levels - part).max() <= step * 1.001
            if step:
                codes = levels / np.float32(step)
                assert np.allclose(codes, np.rint(codes), atol=1e-3)
                assert np.unique(np.rint(codes)).size <= 16


@given(mean=MEANS, alpha=st.sampled_from([0.0, 0.25, 0.5, 1.0]), more=st.integers(-6, 6))
def test_a_factor_on_all_inputs_changes_no_scale(mean: Any, alpha: float, more: int) -> None:
    found = awq.exponents(mean, alpha)
    assert found.dtype == np.int8
    assert np.abs(found).max() <= awq.FINEST
    if alpha == 0 or not mean.any():
        assert not found.any()
    if alpha in (0.0, 1.0) or more % 4 == 0:  # whole powers of two
        assert np.array_equal(found, awq.exponents(np.ldexp(mean, more), alpha))


@given(mean=MEANS)
def test_larger_inputs_get_scales_as_large_or_larger(mean: Any) -> None:
    order = np.argsort(mean, kind="stable")
    assert (np.diff(awq.exponents(mean, 0.7)[order].astype(int)) >= 0).all()


@given(
    head=st.integers(1, 5), heads=st.integers(1, 4), repeats=st.integers(1, 4), seed=st.integers(0)
)
def test_what_is_read_several_times_has_one_scale(
    head: int, heads: int, repeats: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    fold = Fold(maker="v", readers=("o",), count=head * heads, head=head, repeats=repeats)
    made = random.integers(-8, 8, fold.count).astype(np.int8)
    read = fold.repeated(made)
    assert read.reshape(heads, repeats, head).tolist() == [
        [values] * repeats for values in made.reshape(heads, head).tolist()
    ]
    assert np.array_equal(fold.shared(read.astype(np.float32)), made)


@given(seed=st.integers(0, 2**32), loud=st.integers(0, 63))
def test_scales_are_never_worse_than_none_and_help_loud_inputs(seed: int, loud: int) -> None:
    random = np.random.default_rng(seed)
    sample = random.standard_normal((32, 64)).astype(np.float32)
    sample[:, loud] *= 100
    weight = random.standard_normal((16, 64)).astype(np.float32)
    fold = Fold(maker="norm", readers=("linear",), count=64)
    found = awq.search(fold, np.abs(sample).mean(0), sample, weight, 32)
    assert found.error < 0.6
    assert found.exponents.argmax() == loud
    quiet = awq.search(fold, np.zeros(64, np.float32), np.zeros_like(sample), weight, 32)
    assert (quiet.alpha, quiet.error, quiet.exponents.any()) == (0.0, 1.0, False)


@given(tokens=st.integers(64, 10**6), window=st.integers(64, 8192), wanted=st.integers(1, 10**4))
def test_sampled_tokens_are_spread_over_the_places_in_a_window(
    tokens: int, window: int, wanted: int
) -> None:
    step = awq.stride(tokens, window, wanted)
    assert step >= max(1, tokens // wanted)
    assert math.gcd(step, window) == 1


@pytest.mark.parametrize(
    "architecture", [name for name, one in LAYOUTS.items() if one.model_type in folds.TYPES]
)
def test_folds_name_tensors_of_the_layout_that_fit_each_other(architecture: str) -> None:
    layout = LAYOUTS[architecture]
    checkpoint = phi3(
        architecture=architecture,
        model_type=layout.model_type,
        heads=8,
        kv_heads=2,
        head_size=24,
        hidden_size=160,
        intermediate_size=416,
    )
    shapes = dict(layout.layer(layouts.sizes_of(checkpoint)))
    found = folds.of(checkpoint)
    assert {name for fold in found for name in fold.readers} == {
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if len(shape) == 2 and name != "mlp.fc2.weight"  # behind an activation
    }
    for fold in found:
        assert shapes[f"{fold.maker}.weight"][0] >= fold.first + fold.count
        assert len(shapes[f"{fold.maker}.weight"]) == (1 if fold.maker in NORMS else 2)
        for name in fold.readers:
            assert shapes[f"{name}.weight"][1] == fold.count * fold.repeats


def test_values_are_the_last_rows_of_joined_ones() -> None:
    checkpoint = phi3(heads=8, kv_heads=2, head_size=24, hidden_size=160, intermediate_size=416)
    values, inner = folds.of(checkpoint)[1], folds.of(checkpoint)[3]
    assert (values.first, values.count, values.repeats) == ((8 + 2) * 24, 2 * 24, 4)
    assert (inner.first, inner.count, inner.repeats) == (416, 416, 1)
