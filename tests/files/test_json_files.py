"""JSON of strangers: what is read is plain, bounded, and what the file says; the rest is refused in
a sentence."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe.errors import SourceError
from phipipe.files import json_files

NAMED = Path("config.json")
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.booleans())
def test_what_is_within_bounds_is_read_as_it_is(value: object, escaped: bool) -> None:
    raw = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    assert json_files.parse(raw, NAMED) == value


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a": NaN}', "`NaN` is no number"),
        (b'{"a": -Infinity}', "`-Infinity` is no number"),
        (b'{"a": 1e400}', "too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"a": 1, "a": 2}', "stands there twice"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b"[[]" * 70 + b"]" * 70, "nested deeper"),
        (b"\xff", "not UTF-8"),
        (b"", "not valid JSON"),
        (b"[]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_not_is_refused_in_a_sentence(raw: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(SourceError, match=words):
        json_files.read_object(tmp_path / "config.json")


@settings(max_examples=300)
@given(st.binary())
def test_no_bytes_end_in_anything_else(raw: bytes) -> None:
    with contextlib.suppress(SourceError):
        json_files.parse(raw, NAMED)


def test_brackets_in_text_do_not_nest() -> None:
    assert json_files.parse(json.dumps({"a": "[" * 500 + '"{'}).encode(), NAMED) == {
        "a": "[" * 500 + '"{'
    }


def test_only_plain_files_of_a_sensible_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(b" " * 100)
    odd = {"folder": tmp_path, "missing": tmp_path / "none.json", "NUL": tmp_path / "a\0b"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        odd["pipe"] = tmp_path / "pipe.json"
    for path in odd.values():
        with pytest.raises(SourceError):
            json_files.read_object(path)
    with pytest.raises(SourceError, match="too large"):
        json_files.read_object(tmp_path / "large.json", max_bytes=99)
