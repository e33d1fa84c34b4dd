"""Texts in tables: the column ``text``, row by row, read where pyarrow is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.places import ROOT

from phipipe.errors import SourceError
from phipipe.hub import take
from phipipe.models import texts
from phipipe.recipe.recipe import Text

ROWS = ["", " = A heading = \n", "", "Two lines\nof a row", "the last \N{SNOWMAN}"]
WRITE = """
import json, sys
from pathlib import Path
import pyarrow as arrow
from pyarrow import parquet
from phipipe import errors
from phipipe.models import texts
folder, rows = Path(sys.argv[1]), json.loads(sys.argv[2])
tables = {
    "good": {"title": ["x"] * len(rows), "text": rows},
    "numbers": {"text": [1, 2]},
    "other": {"words": rows},
}
for name, columns in tables.items():
    parquet.write_table(arrow.table(columns), folder / f"{name}.parquet", row_group_size=2)
raw = (folder / "good.parquet").read_bytes()
(folder / "broken.parquet").write_bytes(raw[: len(raw) // 3] + b"PAR1")
told = {}
for name in (*tables, "broken"):
    try:
        told[name] = texts.read(folder / f"{name}.parquet")
    except errors.SourceError as error:
        told[name] = {"error": error.message}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def tables(
    tmp_path_factory: pytest.TempPathFactory, python_of: Callable[[str], Path]
) -> tuple[Path, dict[str, Any]]:
    """A folder of Parquet files, and what is read in each."""
    folder = tmp_path_factory.mktemp("tables")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [python_of("torch"), "-c", WRITE, folder, json.dumps(ROWS)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, json.loads(done.stdout)


def test_rows_end_their_lines_and_are_else_as_they_are(tables: tuple[Path, dict[str, Any]]) -> None:
    assert tables[1]["good"] == "\n = A heading = \n\nTwo lines\nof a row\nthe last \N{SNOWMAN}\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [("numbers", "other things than text"), ("other", "no column `text`"), ("broken", "Parquet")],
)
def test_what_holds_no_text_is_named(
    tables: tuple[Path, dict[str, Any]], name: str, said: str
) -> None:
    assert said in tables[1][name]["error"]
    assert f"`{name}.parquet`" in tables[1][name]["error"]


def test_a_table_is_not_learned_from_and_evaluated_on(tables: tuple[Path, dict[str, Any]]) -> None:
    good, other = Text(file="good.parquet"), Text(file="other.parquet")
    assert take.same_text(good, good, tables[0])
    assert not take.same_text(good, other, tables[0])
    assert not take.same_text(good, Text(builtin="stories"), tables[0])


@pytest.mark.parametrize(
    "raw", [b"", b"PAR1", b"PAR1PAR", b"words, not a table", b"PAR1" + bytes(30)]
)
def test_what_only_is_called_a_table_is_refused_before_any_toolchain(
    tmp_path: Path, raw: bytes
) -> None:
    path = tmp_path / "text.parquet"
    path.write_bytes(raw)
    with pytest.raises(SourceError, match="no Parquet file") as refused:
        texts.check(path, "the text", hint="check it")
    assert refused.value.hint == "check it"


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "is empty"), (" \n", "is empty"), ("hi\n", "is too short"), ("Once upon a time.", None)],
)
def test_a_short_text_is_not_called_empty(tmp_path: Path, text: str, words: str | None) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text, "utf-8")
    if words is None:
        texts.check(path, "it")
    else:
        with pytest.raises(SourceError, match=words):
            texts.check(path, "it")
