"""A value in quotes where a number or a switch is meant: any text of it is refused in words."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from testing.shell import Run

from phipipe.backends import OptionsOf
from phipipe.errors import RecipeError
from phipipe.planning import starter_text
from phipipe.recipe import loading
from phipipe.recipe.document import parse
from phipipe.recipe.scalars import MAX_DIGITS, is_text, resolve

KEYS = ("context", "evaluate.tokens", "evaluate.gates.kld_mean.max", "measure.repetitions")
NUMBERS = st.from_regex(
    r"[-+]?(\d{1,400}|0x[0-9a-f]{1,400}|0o[0-7]{1,400})(\.\d{0,400})?(e\d{1,9})?"
)
BASE = "name: r\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nprecision: int4\n"


@given(st.sampled_from(KEYS), st.one_of(NUMBERS, st.text(max_size=400)))
@example("context", "9" * (MAX_DIGITS + 1))
@example("evaluate.tokens", "-0x" + "f" * MAX_DIGITS)
@example("measure.repetitions", "1." + "0" * MAX_DIGITS)
def test_any_text_in_place_of_a_number_is_refused_in_words(key: str, text: str) -> None:
    given_text = json.dumps(text, ensure_ascii=True)
    error: RecipeError | None = None
    with contextlib.suppress(RecipeError):  # the text itself may be none that a recipe takes
        _, error = loading.of_document(
            parse(BASE, "r.yaml"), Path(), options=OptionsOf(), sets=[f"{key}={given_text}"]
        )
        assert error is not None


@given(st.one_of(NUMBERS, st.text(max_size=400)))
def test_what_is_text_without_quotes_is_never_a_riddle(text: str) -> None:
    if is_text(text):
        assert resolve(text) == text
    elif len(text) <= MAX_DIGITS:
        assert not isinstance(resolve(text), str)


def test_an_overlong_number_in_quotes_is_named_with_its_place(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"{BASE}context: '{'9' * (MAX_DIGITS + 1)}'\n", "utf-8")
    code, _, err = run("validate", recipe)
    assert code == 2
    assert f"{recipe}:5:10: expected a whole number, got text `999" in err
    assert "quotes away" not in err


def test_a_number_in_quotes_still_gets_advice(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"{BASE}context: '4096'\n", "utf-8")
    assert "take the quotes away" in run("validate", recipe)[2]


@pytest.mark.parametrize(
    "written",
    ["weights: {learn: gptq, group_size: '64'}", "quantize: {map: {lm_head: {bits: '8'}}}"],
)
def test_one_of_some_numbers_in_quotes_is_no_riddle(run: Run, tmp_path: Path, written: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"{BASE}backend: litert\n{written}\n", "utf-8")
    said = run("validate", recipe)[2]
    assert "take the quotes away" in said
    assert "did you mean" not in said


def test_an_unknown_key_of_a_width_is_told_those_of_a_width(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    entry = "lm_head: {bits: 8, symmetric: false}"
    recipe.write_text(f"{BASE}backend: litert\nquantize: {{map: {{{entry}}}}}\n", "utf-8")
    said = run("validate", recipe)[2]
    assert f"{recipe}:6:37: unknown key `symmetric`; known here: bits, group_size" in said


@pytest.mark.parametrize("text", ["9" * (MAX_DIGITS + 1), "true", "012", "text"])
def test_a_starter_quotes_what_would_be_no_text(text: str) -> None:
    written = starter_text.flow(text)
    assert parse(f"a: {written}", "f").data == {"a": text}
