"""Digests: the same exactly when the meaning is, on every system."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe.errors import StoreError
from phipipe.store import keys
from phipipe.store.keys import FileEntry

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NUMBERS = (
    st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-3, 3)
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3), max_leaves=8
)
RECORDS = st.fixed_dictionaries(
    {
        "format": st.just(1),
        "runs": st.sampled_from(["a:b", "a:c"]),
        "version": st.integers(1, 3),
        "params": st.dictionaries(TEXTS, VALUES, max_size=4),
        "inputs": st.dictionaries(TEXTS, st.sampled_from(["0" * 64, "1" * 64]), max_size=3),
        "tools": st.dictionaries(TEXTS, TEXTS, max_size=3),
    }
)


def meaning(value: Any) -> Any:
    """What a value means, told without JSON: the order of keys and the kind of a number do not
    matter."""
    if isinstance(value, bool | None | str):
        return (type(value).__name__, value)
    if isinstance(value, int | float):
        return ("number", value)  # Python compares 1 and 1.0 exactly, as numbers
    if isinstance(value, list):
        return ("list", tuple(meaning(inner) for inner in value))
    return ("map", frozenset((key, meaning(inner)) for key, inner in value.items()))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below ``value``."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def mutate(record: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """A copy with one change somewhere; about half of the changes mean nothing."""
    changed = copy.deepcopy(record)
    container, key = dice.choice(list(places(changed)))
    value = container[key]
    kind = dice.randrange(6)
    if kind == 0:
        return dict(reversed(changed.items()))
    if kind == 1 and isinstance(container, dict):
        container[key] = container.pop(key)
    elif kind == 2 and isinstance(value, int | float) and not isinstance(value, bool):
        container[key] = int(value) if isinstance(value, float) else float(min(value, 2**53))
    elif kind == 3 and isinstance(value, dict):
        value[dice.choice(["", "new", "bits"])] = dice.choice([None, 0, False, "0", [], {}])
    elif kind == 4 and isinstance(container, dict) and isinstance(key, str):
        del container[key]
    else:
        container[key] = dice.choice(
            [None, 0, 1, 1.0, 0.5, True, False, "", "1", "é", "e\u0301", [], [0], {}, {"a": 1}]
        )
    return changed


@pytest.mark.full
@settings(max_examples=500, deadline=None)
@given(RECORDS, st.randoms(use_true_random=False))
def test_a_key_changes_if_and_only_if_the_meaning_changes(
    record: dict[str, Any], dice: random.Random
) -> None:
    for _ in range(20):  # 10,000 pairs
        other = mutate(record, dice)
        assert (keys.key_of(record) == keys.key_of(other)) == (meaning(record) == meaning(other))


@settings(deadline=None)
@given(VALUES)
def test_canonical_bytes_are_json_of_the_same_meaning(value: Any) -> None:
    assert meaning(json.loads(keys.canonical(value))) == meaning(value)


def test_keys_of_released_versions_stay_as_they_are() -> None:
    record = {
        "format": 1,
        "runs": "m:f",
        "version": 2,
        "params": {"x": 1.0, "é": [True, None, 0.5]},
    }
    text = '{"format":1,"params":{"x":1,"é":[true,null,0.5]},"runs":"m:f","version":2}'
    assert keys.key_of(record) == hashlib.sha256(b"phipipe step\0" + text.encode()).hexdigest()
    tree = b'phipipe tree\0[["a/b",3,"' + b"0" * 64 + b'"]]'
    assert keys.tree_digest([FileEntry("a/b", 3, "0" * 64)]) == hashlib.sha256(tree).hexdigest()


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        {1: 2},
        {None: 1},
        {1, 2},
        b"x",
        Path("x"),
        pytest.param(object(), id="object"),
        "\ud800",
        "\ud83d\ude00",
        {"\udfff": 1},
    ],
    ids=repr,
)
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(StoreError):
        keys.canonical({"params": [value]})


def test_a_value_too_deep_or_too_long_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(StoreError):
        keys.canonical(deep)
    with pytest.raises(StoreError):
        keys.canonical(10**5000)


ENTRIES = st.lists(
    st.builds(
        FileEntry,
        st.from_regex(r"[a-c]{1,2}(/[d-f]{1,2})?", fullmatch=True),
        st.integers(0, 9),
        TEXTS,
    ),
    max_size=5,
    unique_by=lambda e: e.path,
)


@given(ENTRIES, st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_matter(entries: list[FileEntry], dice: random.Random) -> None:
    shuffled = dice.sample(entries, len(entries))
    paths = {e.path for e in entries}
    if any(e.path.partition("/")[0] in paths for e in entries if "/" in e.path):
        with pytest.raises(StoreError):  # a file and a folder of one name
            keys.tree_digest(entries)
    else:
        assert keys.tree_digest(shuffled) == keys.tree_digest(entries)


def test_a_tree_is_its_names_sizes_and_contents() -> None:
    entry = FileEntry("a", 1, "x")
    others = [
        [],
        [FileEntry("b", 1, "x")],
        [FileEntry("a", 2, "x")],
        [FileEntry("a", 1, "y")],
        [entry, FileEntry("b", 1, "x")],
    ]
    digests = {keys.tree_digest(listed) for listed in ([entry], *others)}
    assert len(digests) == 6
    assert keys.key_of({"a": 1}) not in digests


def test_the_unicode_form_of_a_name_does_not_matter() -> None:
    composed, decomposed = FileEntry("\u00e9", 1, "x"), FileEntry("e\u0301", 1, "x")
    assert keys.tree_digest([composed]) == keys.tree_digest([decomposed])
    with pytest.raises(StoreError):
        keys.tree_digest([composed, decomposed])


UNSAFE = [
    "../a",
    "a/../b",
    "/a",
    "a//b",
    "a/",
    "",
    ".",
    "./a",
    "a\\b",
    "C:/a",
    "c:a",
    "a\0b",
    "a\udce9",
]
CLASHES = [["A", "a"], ["a", "a"], ["d/A", "D/a"], ["straße", "STRASSE"], ["A", "a/b"]]


@pytest.mark.parametrize("names", [*([name] for name in UNSAFE), *CLASHES], ids=ascii)
def test_names_that_are_unsafe_or_clash_somewhere_are_refused(names: list[str]) -> None:
    with pytest.raises(StoreError):
        keys.tree_digest([FileEntry(name, 0, "x") for name in names])


def test_a_tree_is_hashed_as_its_files_are(tmp_path: Path) -> None:
    big = os.urandom(5 * 2**20 + 1)  # more than one piece
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "big").write_bytes(big)
    (tmp_path / "a").write_bytes(b"")
    expected = [
        FileEntry("a", 0, hashlib.sha256().hexdigest()),
        FileEntry("b/big", len(big), hashlib.sha256(big).hexdigest()),
    ]
    assert keys.hash_tree(tmp_path) == keys.hash_tree(tmp_path, threads=1) == expected


@pytest.mark.parametrize("odd", ["link", "dangling", "folder link", "fifo", "empty folder"])
def test_a_tree_holds_plain_files_only(tmp_path: Path, odd: str) -> None:
    (tmp_path / "file").write_text("x")
    if odd == "fifo":
        os.mkfifo(tmp_path / "odd")
    elif odd == "empty folder":
        (tmp_path / "odd").mkdir()
    else:
        target = {"link": "file", "dangling": "nothing", "folder link": "."}[odd]
        (tmp_path / "odd").symlink_to(target)
    with pytest.raises(StoreError, match="odd"):
        keys.hash_tree(tmp_path)


def test_every_flipped_bit_of_a_record_is_found() -> None:
    key = "ab" * 32
    output = FileEntry("f", 1, "cd" * 32)
    record = {
        "key": key,
        "params": {"é": 1e300, "x": [1.5, True]},
        "digest": keys.tree_digest([output]),
    }
    record["outputs"] = [{"path": "f", "size": 1, "sha256": output.sha256, "mtime_ns": 5}]
    raw = keys.seal_record(record)
    assert keys.open_record(raw, key)["params"] == record["params"]
    for position in range(len(raw) * 8):
        spoiled = bytearray(raw)
        spoiled[position // 8] ^= 1 << position % 8
        with pytest.raises(StoreError):
            keys.open_record(bytes(spoiled), key)


@pytest.mark.parametrize(
    "change", [{"key": "other"}, {"digest": "00" * 32}, {"outputs": []}, {"outputs": None}]
)
def test_a_record_that_contradicts_itself_is_refused_though_its_own_digest_is_right(
    change: dict[str, Any],
) -> None:
    output = FileEntry("f", 1, "cd" * 32)
    record = {
        "key": "k",
        "digest": keys.tree_digest([output]),
        "outputs": [{"path": "f", "size": 1, "sha256": "cd" * 32}],
    }
    assert keys.open_record(keys.seal_record(record), "k")
    with pytest.raises(StoreError):
        keys.open_record(keys.seal_record(record | change), "k")
