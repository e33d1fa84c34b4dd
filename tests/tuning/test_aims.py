"""Sizes as people write them, and the limits that they set."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe.errors import RecipeError
from phipipe.tuning import aims
from phipipe.tuning.aims import UNITS, Aim


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2.2GiB", 2362232012),
        ("900MB", 900_000_000),
        ("900 mb", 900_000_000),
        (" 1 KiB ", 1024),
        ("17B", 17),
        ("0.5kib", 512),
    ],
)
def test_a_size_has_a_unit(text: str, size_bytes: int) -> None:
    assert aims.size_of(text) == size_bytes


@given(st.integers(1, 10**9), st.sampled_from(list(UNITS)))
def test_whole_sizes_are_exact(count: int, unit: str) -> None:
    if count * UNITS[unit] < 2**53:
        assert aims.size_of(f"{count}{unit}") == count * UNITS[unit]


@pytest.mark.parametrize(
    "text", ["", "2.2", "GiB", "-1GiB", "1e3GiB", "2,2GiB", "٢GiB", "1GiB2", "1 TiBs", "nanB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is no size"):
        aims.size_of(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("-3MiB", "a file has no negative size"),
        ("-inf", "a file has no negative size"),
        ("900", "the unit is missing"),
        ("5 TB", "there is no unit `TB`; there are B, KB, MB, GB, KiB, MiB, GiB"),
        ("5GiBs", "there is no unit `GiBs`"),
        ("nan", "a number in plain digits comes first"),
        ("inf", "a number in plain digits comes first"),
        ("1e3MB", "a number in plain digits comes first"),
        ("1,5GB", "a number in plain digits comes first"),
        ("1GiB\x1b[2J", "a number in plain digits comes first"),
    ],
)
def test_a_refusal_says_what_is_wrong_with_it(text: str, why: str) -> None:
    with pytest.raises(RecipeError) as caught:
        aims.size_of(text)
    assert why in caught.value.message
    assert "\x1b" not in caught.value.message


@given(st.integers(1, 2**45), st.integers(1_000_000, 10**11))
def test_the_least_that_is_offered_is_enough(size_bytes: int, parameters: int) -> None:
    text = Aim(size_bytes=1).least(size_bytes, parameters).removeprefix("--size ")
    assert size_bytes <= aims.size_of(text) <= size_bytes + max(1.01 * size_bytes, 2**20) / 100
    bits = Aim(bits=1).least(size_bytes, parameters).removeprefix("--bits ")
    limit = Aim(bits=float(bits)).limit_bytes(parameters)
    assert limit is not None
    assert size_bytes <= limit


@given(st.text() | st.from_regex(r"[0-9]*\.?[0-9]*[KMG]?i?B", fullmatch=True))
def test_any_text_is_a_size_or_is_refused(text: str) -> None:
    with contextlib.suppress(RecipeError):
        assert aims.size_of(text) >= 1


@pytest.mark.parametrize("text", ["0B", "0.1B", "0GiB"])
def test_nothing_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="holds nothing"):
        aims.size_of(text)


def test_more_digits_than_any_size_has_are_refused() -> None:
    with pytest.raises(RecipeError, match="is no size"):
        aims.size_of("9" * 400 + "GiB")


def test_limits() -> None:
    assert Aim(size_bytes=7).limit_bytes(100) == 7
    assert Aim(bits=4.5).limit_bytes(1000) == 562
    assert Aim(by_gates=True).limit_bytes(1000) is None
    assert Aim().limit_bytes(1000) is None
    today = [Aim(), Aim(size_bytes=7), Aim(bits=4.5), Aim(by_gates=True)]
    assert [one.as_today for one in today] == [True, False, False, False]
