"""One table of metrics: whoever shows, compares or limits a figure reads it there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phipipe.batch import accept
from phipipe.evaluate.answer_reports import AnswerFigures
from phipipe.evaluate.reports import Metrics, Speed, Vision
from phipipe.metrics import METRICS, ROWS, WORDS, Metric, names
from phipipe.package import figures

ROW: dict[str, Any] = {
    "name": "kld_min",
    "title": "KL divergence, lowest",
    "column": "lowest",
    "meaning": "KL divergence at the best position, in nats",
    "reads_as": "the best single position",
    "better": "lower",
    "kind": "fidelity",
}


def test_a_row_is_complete_or_refused() -> None:
    assert Metric(**ROW).heading == "lowest"


@pytest.mark.parametrize(
    "change",
    [
        {"better": ""},
        {"better": "more"},
        {"kind": "other"},
        {"title": ""},
        {"meaning": ""},
        {"reads_as": ""},
        {"reads_as": "{nobody}"},
        {"digits": 0},
        {"factor": 0.0},
    ],
    ids=str,
)
def test_a_row_that_says_too_little_is_an_error_at_import(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="metric kld_min"):
        Metric(**{**ROW, **change})


@pytest.mark.parametrize("metric", ROWS, ids=lambda row: row.name)
def test_every_metric_is_explained_in_one_or_two_sentences(metric: Metric) -> None:
    assert metric.meaning[0].isupper() or metric.meaning[0].isdigit()
    assert metric.meaning.endswith(".")
    assert 1 <= len(re.findall(r"[.;](?: |$)", metric.meaning)) <= 3
    assert len(metric.meaning) <= 240


def test_a_direction_has_no_default() -> None:
    with pytest.raises(TypeError, match="better"):
        Metric(**{key: value for key, value in ROW.items() if key != "better"})


def test_no_metric_is_in_the_table_twice() -> None:
    assert len(METRICS) == len(ROWS)
    assert names("fidelity", "pictures", "answers", "size", "speed") == set(METRICS)


@pytest.mark.parametrize("metric", ROWS, ids=lambda row: row.name)
def test_a_loss_counts_in_the_direction_of_the_table(metric: Metric) -> None:
    worse, better = (0.5, 0.75) if metric.better == "higher" else (0.75, 0.5)
    assert metric.loss(better, worse) == 0.25
    (found,) = accept.regressions({metric.name: better}, {metric.name: worse}, {metric.name: 0.2})
    assert (found.before, found.after) == (better, worse)
    assert not accept.regressions({metric.name: worse}, {metric.name: better}, {metric.name: 0.0})


@pytest.mark.parametrize("metric", ROWS, ids=lambda row: row.name)
def test_every_metric_that_was_measured_has_a_row_in_the_table(metric: Metric) -> None:
    value = {metric.name: 0.5}
    fidelity = Metrics(metrics=value if metric.kind in ("fidelity", "size") else {})
    pictures, speed = metric.kind == "pictures", metric.kind == "speed"
    (row,) = figures.fidelity_table(
        fidelity,
        Speed(metrics=value) if speed else None,
        vision=Vision(metrics=value, positions=3, vectors={"a": 0}) if pictures else None,
        answers=AnswerFigures(metrics=value) if metric.kind == "answers" else None,
    )
    assert (row.group, row.metric, row.title) == (metric.kind, metric.name, metric.title)
    assert not re.search("[{}]", row.reads_as)


def test_every_word_that_a_row_may_use_is_used() -> None:
    assert {word for row in ROWS for word in re.findall(r"\{(\w+)\}", row.reads_as)} == WORDS


ADDED = """
import importlib.util, json, sys
from pathlib import Path
spec = importlib.util.find_spec("phipipe.metrics")
text = spec.loader.get_source("phipipe.metrics").replace("ROWS = (", "ROWS = (Metric(**%r),", 1)
module = importlib.util.module_from_spec(spec)
sys.modules["phipipe.metrics"] = module
exec(compile(text, spec.origin, "exec"), vars(module))

from phipipe import backends
from phipipe.batch import accept
from phipipe.evaluate.reports import Metrics
from phipipe.package import figures
from phipipe.recipe import loading, schema

(build,) = loading.load(Path(sys.argv[1]), options=backends.OptionsOf())
evaluate = build.recipe.evaluate
fidelity = Metrics(metrics={"kld_min": 0.5})
print(json.dumps({
    "gate": evaluate.gates["kld_min"].max,
    "tolerance": evaluate.tolerance["kld_min"],
    "loss": accept.regressions({"kld_min": 0.25}, {"kld_min": 0.5}, evaluate.tolerance)[0].limit,
    "table": [row.title for row in figures.fidelity_table(fidelity, None)],
    "schema": "kld_min" in schema.dump(backends.OptionsOf()),
}))
"""


def test_a_new_metric_is_one_row(tmp_path: Path) -> None:
    """Recipes, their schema, gates, tolerances and tables know it then; what is left is to compute
    it."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: new\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nprecision: int4\n"
        "evaluate: {gates: {kld_min: {max: 0.6}}, tolerance: {kld_min: 0.1}}\n",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-c", ADDED % ROW, recipe],
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "gate": 0.6,
        "tolerance": 0.1,
        "loss": 0.1,
        "table": ["KL divergence, lowest"],
        "schema": True,
    }
