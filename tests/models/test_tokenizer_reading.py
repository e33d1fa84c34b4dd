"""A tokenizer is read once: as ``tokenizer.json`` has it, by everybody."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing import byte_tokenizers
from testing.byte_tokenizers import FIRST
from testing.plans import planned

from phipipe.errors import SourceError
from phipipe.hub import take
from phipipe.hub.mending import mended
from phipipe.models import sentencepiece_file, tokenizer_reading
from phipipe.models.tokenizer_difference import first, shortened, visible

RECIPE = """
name: it
source: {{path: {}}}
device: cpu-x86_64
backend: onnxruntime
precision: fp32
evaluate: {{text: {{builtin: stories}}}}
"""


def recipe_of(folder: Path) -> Path:
    path = folder.with_suffix(".yaml")
    path.write_text(RECIPE.format(folder.name), "utf-8")
    return path


@given(st.text(alphabet="ab \n", min_size=1), st.integers(0, 40))
def test_the_shortest_text_still_shows_the_difference(around: str, at: int) -> None:
    text = around[:at] + "  x" + around[at:]
    assert shortened(lambda part: "  x" in part, text) == "  x"


@given(st.text(min_size=1, max_size=30))
def test_equal_tokenizers_do_not_differ(text: str) -> None:
    assert first("text", [text], lambda t: list(map(ord, t)), lambda t: list(map(ord, t))) is None


def test_a_difference_is_told_by_its_kind_and_its_ids() -> None:
    keeps, drops = (lambda t: [1] * len(t)), (lambda t: [1] * len(t.replace("\n", "")))
    found = first("chat", ["a long text\nof two lines", "b\n"], keeps, drops)
    assert found is not None
    assert found.words == r"a chat's text `\n` as tokens [], not [1]"


def test_a_run_of_one_digit_tells_two_cuts_apart(tmp_path: Path) -> None:
    """A small vocabulary may join zeros alone: then no other text shows that they are cut off in
    threes."""

    def read(most: int) -> Any:
        def encode(text: str) -> list[int]:
            return [len(run) for run in re.findall(f"0{{1,{most}}}|[^0]+|0", text)]

        def encode_zeros(text: str) -> list[int]:
            return encode(text) if set(text) == {"0"} else [len(text)]

        return SimpleNamespace(encode=encode_zeros, facts={"chat_template": None})

    found = tokenizer_reading.difference(tmp_path, read(3), read(9))
    assert found is not None
    assert "`0000`" in found.words
    assert tokenizer_reading.difference(tmp_path, read(3), read(3)) is None


@given(st.text())
def test_a_text_is_shown_on_one_line(text: str) -> None:
    assert visible(text).isprintable()
    assert len(visible(text)) < 3000


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_pieces_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.model"
    path.write_bytes(raw)
    with contextlib.suppress(SourceError):
        assert sentencepiece_file.pieces(path)


def test_pieces_are_read_without_sentencepiece(checkpoint: Path) -> None:
    whole = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    pieces = sentencepiece_file.pieces(checkpoint / "tokenizer.model")
    assert len(pieces) > 2000
    by_id = {number: token for token, number in whole["model"]["vocab"].items()}
    assert [by_id[i] for i in range(len(by_id))][:2240] == pieces[:2240]


def test_a_tokenizer_model_of_another_model_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.json"
    whole = json.loads(path.read_text("utf-8"))
    vocabulary = whole["model"]["vocab"]
    a, b = list(vocabulary)[300:302]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(whole), "utf-8")
    with pytest.raises(SourceError, match=r"tokenizer files disagree.*`tokenizer.model`"):
        take.of_folder(checkpoint)


def test_without_the_toolchain_the_comparison_is_the_first_step(tmp_path: Path) -> None:
    plan = planned(path=recipe_of(byte_tokenizers.write(tmp_path / "model")))
    assert [step.name for step in plan.steps[:2]] == ["tokenizer", "source"]
    assert plan.steps[1].after == ("tokenizer",)
    assert plan.steps[0].toolchain == "torch"


def test_a_class_that_takes_the_file_as_it_is_needs_no_comparison_first(tmp_path: Path) -> None:
    folder = byte_tokenizers.write(tmp_path / "model", "PreTrainedTokenizerFast")
    plan = planned(path=recipe_of(folder))
    assert plan.steps[0].name == "source"


def test_a_token_that_ends_answers_reaches_the_staged_copy(tmp_path: Path) -> None:
    folder = byte_tokenizers.write(
        tmp_path / "model", "PreTrainedTokenizerFast", eos_token_id=FIRST
    )
    plan = planned(path=recipe_of(folder))
    assert [step.name for step in plan.steps[:2]] == ["unmended", "source"]
    assert [advice.rule for advice in plan.warnings] == ["W21"]
    out = tmp_path / "out"
    out.mkdir()
    tokenizer_reading.mend({"source": folder}, out, plan.steps[1].params)
    made = json.loads((out / "generation_config.json").read_text("utf-8"))
    assert made["eos_token_id"] == [FIRST, FIRST + 2]
    assert made["pad_token_id"] == FIRST
    assert {path.name for path in out.iterdir()} == {path.name for path in folder.iterdir()}


def test_a_template_that_tells_the_date_is_named_in_the_plan(tmp_path: Path) -> None:
    folder = byte_tokenizers.write(tmp_path / "model", "PreTrainedTokenizerFast")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["chat_template"] = "{{ strftime_now('%d %b') }}" + settings["chat_template"]
    path.write_text(json.dumps(settings), "utf-8")
    assert [advice.rule for advice in planned(path=recipe_of(folder)).warnings] == ["W22"]


@pytest.mark.parametrize(
    "changes",
    [
        {"../../x": {"tokenizer_class": "PreTrainedTokenizerFast"}},
        {"config.json": {"auto_map": {"AutoModel": "x.Y"}}},
        {"tokenizer_config.json": {"tokenizer_class": "x.Y"}},
        {"generation_config.json": {"eos_token_id": ["2"]}},
        {"generation_config.json": {"eos_token_id": 2}},
    ],
)
def test_a_strangers_manifest_mends_nothing_else(
    tmp_path: Path, changes: dict[str, dict[str, object]]
) -> None:
    folder = byte_tokenizers.write(tmp_path / "model")
    original = take.of_folder(folder)
    with pytest.raises(SourceError, match="never sets"):
        mended(original, changes)


def test_a_class_that_rebuilds_the_tokenizer_is_mended_and_said(
    tmp_path: Path, python_of: Callable[[str], Path]
) -> None:
    folder = byte_tokenizers.write(tmp_path / "model")
    python_of("torch")
    plan = planned(path=recipe_of(folder))
    settings = {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}}
    assert plan.steps[1].params == {"settings": settings}
    (said,) = [advice.message for advice in plan.warnings if advice.rule == "W20"]
    assert "transformers reads the text `" in said
    assert planned(path=recipe_of(folder)).steps == plan.steps  # remembered


def test_the_embedded_models_tokenizer_is_read_alike(
    checkpoint: Path, python_of: Callable[[str], Path]
) -> None:
    assert tokenizer_reading.read(checkpoint, python_of("torch")).settings == {}


def test_what_no_class_mends_is_refused_by_a_text(
    tmp_path: Path, python_of: Callable[[str], Path]
) -> None:
    python_of("torch")
    folder = byte_tokenizers.write(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    # transformers adds this token to the vocabulary, whatever `tokenizer.json` says
    settings["additional_special_tokens"] = ["Hello"]
    path.write_text(json.dumps(settings), "utf-8")
    with pytest.raises(SourceError, match=r"does not fit `tokenizer.json`.*reads the text `"):
        planned(path=recipe_of(folder))
