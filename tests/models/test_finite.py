"""A weight that is no number is found in the original, before anything is made of it."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import small_checkpoints
from testing.family_builds import BUILDS, plan_of
from testing.hostile_checkpoints import WEIGHTS

from phipipe.errors import SourceError
from phipipe.models import finite, weights
from phipipe.models.layouts import EMBEDDING

FORMATS = {"F8_E5M2": "<e", "F16": "<e", "F32": "<f", "F64": "<d"}
SIZES = {"F8_E5M2": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}
NAN, INFINITE = (
    {
        "BF16": b"\xc0\x7f",
        "F16": b"\x00\x7e",
        "F32": b"\x00\x00\xc0\x7f",
    },
    {"BF16": b"\x80\xff", "F16": b"\x00\xfc", "F32": b"\x00\x00\x80\xff"},
)


def values(raw: bytes, dtype: str) -> list[float]:
    size = SIZES[dtype]
    parts = [raw[at : at + size] for at in range(0, len(raw), size)]
    if dtype == "BF16":
        return [struct.unpack("<f", b"\0\0" + part)[0] for part in parts]
    if dtype == "F8_E5M2":
        parts = [b"\0" + part for part in parts]
    return [struct.unpack(FORMATS[dtype], part)[0] for part in parts]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SIZES)), st.data())
def test_the_first_odd_element_is_the_one_that_python_finds(
    dtype: str, data: st.DataObject
) -> None:
    byte = st.sampled_from([0x00, 0x7B, 0x7C, 0x7F, 0x80, 0xEF, 0xF0, 0xFC, 0xFF]) | st.integers(
        0, 255
    )
    count = data.draw(st.integers(0, 12)) * SIZES[dtype]
    raw = bytes(data.draw(st.lists(byte, min_size=count, max_size=count)))
    odd = [place for place, value in enumerate(values(raw, dtype)) if not math.isfinite(value)]
    assert finite.first_odd(raw, dtype) == (odd[0] if odd else None)


def test_the_one_nan_of_e4m3_is_found() -> None:
    assert [finite.first_odd(bytes([0x7E, byte]), "F8_E4M3") for byte in (0x7E, 0x7F, 0xFF)] == [
        None,
        1,
        1,
    ]


def test_whole_numbers_are_never_odd() -> None:
    assert finite.first_odd(b"\xff" * 64, "I64") is None
    assert finite.first_odd(b"\xff" * 64, "U8") is None


def spoil(folder: Path, name: str, place: int, element: bytes) -> Path:
    """Put ``element`` into the tensor ``name``, whose elements are as wide."""
    (tensor,) = (one for one in weights.tensors(folder / WEIGHTS) if one.name == name)
    with (folder / WEIGHTS).open("r+b") as stream:
        stream.seek(tensor.offset + place * len(element))
        stream.write(element)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_checkpoints.write(tmp_path / "small")


@pytest.mark.parametrize("backend", BUILDS)
def test_a_nan_is_named_in_plan_with_its_place(small: Path, backend: str) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    spoil(small, name, 48 * 3 + 5, NAN["F32"])
    with pytest.raises(SourceError) as refused:
        plan_of(small, backend, "short")
    assert f"the original has NaN in tensor `{name}` at [3, 5]" in refused.value.message
    assert refused.value.exit_code == 8


def test_a_row_that_no_text_reads_is_told_with_what_to_do(small: Path) -> None:
    spoil(small, EMBEDDING, 32 * 39, INFINITE["F32"])
    with pytest.raises(SourceError) as refused:
        plan_of(small, "torch", "short")
    assert "an infinite weight" in refused.value.message
    assert "token 39" in str(refused.value.hint)


def test_what_was_looked_at_once_is_not_read_again_until_it_changes(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    real: Callable[[Path], None] = finite.check

    def check(folder: Path) -> None:
        looked.append(folder.name)
        real(folder)

    monkeypatch.setattr(finite, "check", check)
    long_ago = (small / WEIGHTS).stat().st_mtime - 60
    os.utime(small / WEIGHTS, (long_ago, long_ago))
    for _ in range(2):
        plan_of(small, "torch", "short")
    assert looked == ["small"]
    spoil(small, EMBEDDING, 0, NAN["F32"])
    with pytest.raises(SourceError, match="NaN"):
        plan_of(small, "torch", "short")


@pytest.mark.parametrize("dtype", sorted(NAN))
def test_a_place_beyond_the_first_piece_is_counted_on(tmp_path: Path, dtype: str) -> None:
    size, rows = SIZES[dtype], 3
    columns = finite.CHUNK_BYTES // size
    head = {"w": {"dtype": dtype, "shape": [rows, columns]}}
    head["w"]["data_offsets"] = [0, rows * columns * size]
    small_checkpoints.save(tmp_path / WEIGHTS, head)
    finite.check(tmp_path)
    spoil(tmp_path, "w", 2 * columns + 7, NAN[dtype])
    with pytest.raises(SourceError, match=r"NaN in tensor `w` at \[2, 7\]"):
        finite.check(tmp_path)
