"""Errors cross the borders of processes and machines as what they are, whatever they say."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import phipipe
from phipipe import errors
from phipipe.errors import (
    Interrupted,
    Located,
    PhipipeError,
    Place,
    Skipped,
    StepFailed,
    decoded,
    encoded,
)

BASES = {
    kind.exit_code: kind
    for kind in PhipipeError.__subclasses__()
    if kind.__module__ == "phipipe.errors"
}

texts = st.text()
places = st.builds(Place, texts, st.none() | st.integers(1), st.none() | st.integers(1))
problems = st.lists(st.builds(Located, texts, places), max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


def every_kind() -> list[type[PhipipeError]]:
    """Every kind that phipipe has: each module that defines one is imported."""
    root, known = Path(phipipe.__path__[0]), "|".join(kind.__name__ for kind in errors.kinds())
    for path in sorted(root.rglob("*.py")):
        if re.search(rf"^class \w+\((\w+\.)?({known})\):", path.read_text("utf-8"), re.MULTILINE):
            importlib.import_module(
                ".".join(("phipipe", *path.relative_to(root).with_suffix("").parts))
            )
    return sorted(
        {k for k in errors.kinds() if k.__module__.startswith("phipipe.")}, key=lambda k: k.__name__
    )


def test_kinds_of_all_modules_are_known() -> None:
    assert {kind.__name__ for kind in every_kind()} >= {
        "Damaged",
        "Missing",
        "NoRecord",
        "Newer",
        "Skipped",
    }


def made(
    kind: type[PhipipeError], message: str, hint: str | None, parts: list[Located], detail: str
) -> PhipipeError:
    error = kind.__new__(kind)
    PhipipeError.__init__(error, message, hint=hint, problems=parts)
    for name in kind.DETAILS:
        setattr(error, name, detail)
    return error


def carried(error: PhipipeError) -> dict[str, Any]:
    return {"args": error.args, "exit_code": error.exit_code, **vars(error)}


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
@given(message=texts, hint=st.none() | texts, parts=problems, detail=texts)
@settings(max_examples=25, deadline=None)
def test_every_kind_crosses_a_border_unchanged(
    kind: type[PhipipeError], message: str, hint: str | None, parts: list[Located], detail: str
) -> None:
    error = made(kind, message, hint, parts, detail)
    again = decoded(json.loads(json.dumps(encoded(error))))
    assert type(again) is kind
    assert carried(again) == carried(error)
    assert str(again) == message


def test_what_a_kind_has_beside_the_words_is_declared() -> None:
    """An attribute that its constructor sets and ``DETAILS`` does not name would be lost on the
    way."""
    for kind in every_kind():
        wanted = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
        error = kind(**{parameter.name: "x" for parameter in wanted})
        assert set(vars(error)) - {"message", "hint", "problems", "exit_code"} == set(
            kind.DETAILS
        ), kind


@pytest.mark.parametrize("kind", [Interrupted, Skipped])
@pytest.mark.parametrize("code", [130, 143])
def test_who_was_interrupted_stays_so_with_either_code(kind: type[Interrupted], code: int) -> None:
    again = decoded(encoded(kind("stop", exit_code=code)))
    assert (type(again), again.exit_code, again.message) == (kind, code, "stop")


@pytest.mark.parametrize("code", [*BASES, 143])
def test_a_kind_that_only_a_newer_phipipe_has_becomes_the_plain_one_of_its_code(code: int) -> None:
    told = {
        "kind": "OfNextYear",
        "code": code,
        "message": "m",
        "hint": "h",
        "details": {"why": ["x"]},
        "more": 1,
    }
    again = decoded(told)
    assert type(again) is BASES[130 if code == 143 else code]
    assert (again.exit_code, again.message, again.hint) == (code, "m", "h")


def test_a_kind_without_what_it_needs_becomes_a_plainer_one() -> None:
    again = decoded({"kind": "Damaged", "code": 9, "message": "m", "details": {"digest": 7}})
    assert type(again) is errors.StoreError


def test_no_kind_is_believed_to_end_well() -> None:
    assert (
        decoded({"kind": "StepFailed", "code": 0, "message": "m"}).exit_code == StepFailed.exit_code
    )
    assert decoded({"kind": "Interrupted", "code": 0, "message": "m"}).exit_code == 130
    assert (
        decoded({"kind": "Nonesuch", "code": 0, "message": "m"}).exit_code == StepFailed.exit_code
    )


@given(json_values)
@settings(max_examples=150, deadline=None)
def test_garbage_becomes_an_error_of_ours(told: Any) -> None:
    assert 2 <= decoded(told).exit_code <= 9


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "kind": json_values
            | st.sampled_from(["Damaged", "Skipped", "PhipipeError", "Missing", "__class__"]),
            "code": json_values | st.sampled_from([0, 70, 9, 143, True]),
            "message": json_values,
            "hint": json_values,
            "problems": st.lists(
                st.fixed_dictionaries({"message": json_values, "file": json_values})
            )
            | json_values,
            "details": st.dictionaries(
                st.sampled_from(["digest", "name", "exit_code", "args"]), json_values
            )
            | json_values,
        },
    )
)
@settings(max_examples=150, deadline=None)
def test_half_garbage_keeps_what_makes_sense(told: dict[str, Any]) -> None:
    again = decoded(told)
    assert again.exit_code in (*BASES, 143, 70)
    assert again.message == (
        told["message"] if isinstance(told.get("message"), str) else errors.UNREADABLE
    )
    assert again.hint is None or isinstance(again.hint, str)
    json.dumps(encoded(again), allow_nan=False)


def test_words_before_the_message_say_who_failed() -> None:
    assert (
        decoded(encoded(StepFailed("it is crooked")), before="step `x`: ").message
        == "step `x`: it is crooked"
    )
