"""Codes and scales: what they stand for, and that a folder gives them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.errors import StepFailed

SCALES = st.floats(-60000, 60000, width=32)


@st.composite
def matrices(draw: st.DrawFn) -> Matrix:
    bits, size = draw(st.sampled_from([4, 8])), draw(st.sampled_from([32, 64]))
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    low, high = lattice.limits(bits)
    codes = draw(of.arrays(np.int8, (rows, groups * size), elements=st.integers(low, high)))
    scales = draw(of.arrays(np.float32, (rows, groups), elements=SCALES))
    return Matrix(bits=bits, codes=codes, scales=lattice.to_scales(scales))


@given(of.arrays(np.float32, st.integers(1, 50), elements=SCALES))
def test_scales_are_near_and_times_any_code_exact_in_float16(values: np.ndarray) -> None:
    scales = lattice.to_scales(values)
    normal = np.abs(values) >= 2.0**-14
    near = np.abs(scales.astype(np.float64) - values) <= np.abs(values) * 2.0**-7
    assert near[normal].all()
    assert (np.signbit(scales) == np.signbit(values)).all()
    small = scales[np.abs(scales) < 2.0**11].astype(np.float64)
    for code in range(-8, 8):
        assert (np.float16(small * code) == small * code).all()
    assert (lattice.to_scales(scales.astype(np.float32)) == scales).all()


@settings(max_examples=30)
@given(
    st.dictionaries(st.sampled_from(["a", "b.c", "layers.0.mlp.down_proj"]), matrices(), min_size=1)
)
def test_a_folder_gives_back_what_was_stored(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, Matrix]
) -> None:
    folder = tmp_path_factory.mktemp("lattice")
    for part, (name, matrix) in enumerate(stored.items()):
        lattice.write(folder, part, {name: matrix})
    lattice.finish(folder, {"learn": "round"})
    found = Lattice(folder)
    assert found.names == set(stored)
    assert found.digest == found.computed_digest()
    for name, matrix in stored.items():
        again = found[name]
        assert found.width(name) == (matrix.bits, matrix.group_size)
        assert found.shape(name) == matrix.codes.shape
        assert (again.codes == matrix.codes).all()
        assert (again.scales == matrix.scales).all()
        assert (lattice.unpacked(matrix.packed(), matrix.bits) == matrix.codes).all()


def test_one_changed_code_is_another_digest(tmp_path: Path) -> None:
    codes = np.zeros((2, 32), np.int8)
    scales = lattice.to_scales(np.ones((2, 1), np.float32))
    digests = set()
    for at in range(3):
        codes[0, 0] = at
        folder = tmp_path / str(at)
        folder.mkdir()
        lattice.write(folder, 0, {"a": Matrix(bits=4, codes=codes, scales=scales)})
        lattice.finish(folder, {})
        digests.add(Lattice(folder).digest)
    assert len(digests) == 3


def test_joined_and_apart_are_the_same_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    parts = {
        f"layers.0.self_attn.{name}_proj": Matrix(
            bits=4,
            codes=random.integers(-8, 8, (rows, 32), np.int8),
            scales=lattice.to_scales(np.ones((rows, 1), np.float32)),
        )
        for name, rows in (("q", 4), ("k", 2), ("v", 2))
    }
    lattice.write(tmp_path, 0, parts)
    found = Lattice(tmp_path)
    whole = found.rows_of("layers.0.self_attn.qkv_proj", 8)
    assert (whole.codes == lattice.joined(parts.values()).codes).all()
    with pytest.raises(StepFailed, match="7 rows"):
        found.rows_of("layers.0.self_attn.qkv_proj", 7)


@given(st.integers(1, 6), st.integers(1, 4), st.randoms(use_true_random=False))
def test_parts_of_a_joined_matrix_are_found_by_their_length(
    tmp_path_factory: pytest.TempPathFactory, queries: int, keys: int, random: Any
) -> None:
    folder = tmp_path_factory.mktemp("lattice")
    total = queries + 2 * keys
    codes = np.random.default_rng(random.randrange(2**32)).integers(-8, 8, (total, 32), np.int8)
    scales = lattice.to_scales(np.arange(1, total + 1, dtype=np.float32)[:, None])
    whole = Matrix(bits=4, codes=codes, scales=scales)
    lattice.write(folder, 0, {"layers.0.self_attn.qkv_proj": whole})
    found = Lattice(folder)
    places = {"q_proj": (0, queries), "k_proj": (queries, keys), "v_proj": (queries + keys, keys)}
    for name, (start, rows) in places.items():
        part = found.rows_of(f"layers.0.self_attn.{name}", rows)
        assert (part.codes == codes[start : start + rows]).all()
        assert (part.scales == scales[start : start + rows]).all()
    with pytest.raises(StepFailed, match="no `layers"):
        found.rows_of("layers.0.self_attn.k_proj", total)
