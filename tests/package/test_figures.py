"""Numbers as people read them: digits by their error, units by their size, words by the
yardstick."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phipipe.evaluate.answer_reports import AnswerFigures, LeftOut
from phipipe.evaluate.reports import Metrics, Scored, Speed
from phipipe.package import answer_words, figures

METRICS: dict[str, Any] = {
    "metrics": {
        "kld_mean": 0.01234,
        "kld_median": 0.00412,
        "kld_p99": 0.1423,
        "kld_max": 1.302,
        "top1": 0.9312,
        "ppl": 5.432,
        "ppl_ratio": 1.0123,
        "dp_rms": 0.0234,
        "size_gib": 2.34,
        "bits_per_weight": 5.013,
    },
    "stderr": {"kld_mean": 0.00041, "top1": 0.0041, "ppl": 0.123, "ppl_ratio": 0.0021},
}
SPEED: dict[str, Any] = {
    "metrics": {
        "load_s": 0.3123,
        "ttft_s": 0.01234,
        "prefill_tokens_per_s": 10372.8,
        "decode_tokens_per_s": 543.21,
        "peak_memory_gib": 0.2134,
    },
    "spread": {"decode_tokens_per_s": [500.2, 560.9]},
    "prompt_tokens": 128,
}
BASELINE = Scored(tokens=4096, window=256, ppl=5.366, ppl_stderr=0.119)


@pytest.mark.parametrize(
    ("value", "stderr", "shown"),
    [
        (0.00203, 0.000051, "0.00203 ± 0.00005"),
        (
            0.002034,
            0.000018,
            "0.002034 ± 0.000018",
        ),  # an error that begins with 1 or 2 keeps two digits
        (1.14e-7, 3.2e-9, "1.14e-7 ± 0.03e-7"),
        (2e-8, 5.3e-7, "0e-7 ± 5e-7"),
        (9.996e-4, 5e-5, "1.00e-3 ± 0.05e-3"),
        (96.54, 0.31, "96.5 ± 0.3"),
        (12345.6, 120, "12,350 ± 120"),
        (-0.5, 0.04, "-0.50 ± 0.04"),
        (1.0, 0.0, "1.00"),
        (1.0, None, "1.00"),
        (0.0, 1e-5, "0.0e-5 ± 1.0e-5"),
        (0.0996, 0.0997, "0.10 ± 0.10"),
    ],
)
def test_the_error_decides_the_digits(value: float, stderr: float | None, shown: str) -> None:
    assert figures.with_error(value, stderr) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.012345, "0.0123"),
        (1.14e-7, "1.14e-7"),
        (0.0009996, "1.00e-3"),
        (0.9996, "1.00"),
        (12345.6, "12,300"),
        (999.6, "1,000"),
        (math.nan, "not a number"),
        (math.inf, "infinite"),
    ],
)
def test_a_number_alone_has_three_digits(value: float, shown: str) -> None:
    assert figures.number(value) == shown


@given(st.floats(1e-12, 1e9), st.floats(1e-6, 1))
def test_what_is_shown_lies_within_half_the_error_of_what_was_measured(
    value: float, relative: float
) -> None:
    error = value * relative
    shown, _, shown_error = figures.with_error(value, error).replace(",", "").partition(" ± ")
    assert abs(float(shown) - value) <= 0.2 * error
    assert float(shown_error) == pytest.approx(error, rel=0.17)


@given(st.floats(0, 1e308, exclude_min=True))
@example(5e-324)
@example(1.7e308)
def test_a_number_reads_back_within_its_digits(value: float) -> None:
    assert float(figures.number(value).replace(",", "")) == pytest.approx(value, rel=0.00501)


@given(st.floats(allow_nan=True), st.floats(min_value=0))
def test_any_number_and_any_error_have_words(value: float, stderr: float) -> None:
    assert figures.with_error(value, stderr)


@pytest.mark.parametrize(
    ("gib", "shown"),
    [
        (2.34, ("2.34", "GiB")),
        (0.0034, ("3.48", "MiB")),
        (1e-6, ("1.05", "KiB")),
        (1.0, ("1.00", "GiB")),
    ],
)
def test_sizes_take_the_unit_that_suits_them(gib: float, shown: tuple[str, str]) -> None:
    assert figures.size(gib) == shown


def rows(**changes: Any) -> dict[str, figures.Row]:
    metrics = Metrics.model_validate({**METRICS, **changes})
    found = figures.fidelity_table(metrics, Speed.model_validate(SPEED), BASELINE)
    return {row.metric: row for row in found}


def test_every_measurement_has_one_row() -> None:
    assert set(rows()) == {*METRICS["metrics"], *SPEED["metrics"]}
    assert {row.group for row in rows().values()} == {"fidelity", "size", "speed"}


def test_a_measurement_that_was_not_taken_has_none() -> None:
    speed = Speed(metrics={"ttft_s": 0.1})
    found = figures.fidelity_table(Metrics(metrics={"kld_mean": 0.1}), speed)
    assert [row.metric for row in found] == ["kld_mean", "ttft_s"]
    assert figures.fidelity_table(Metrics(metrics={})) == []


def test_rows_say_value_unit_and_meaning() -> None:
    found = rows()
    assert (found["top1"].value, found["top1"].unit) == ("93.1 ± 0.4", "%")
    assert (found["dp_rms"].value, found["dp_rms"].unit) == ("2.34", "% points")
    assert (found["size_gib"].value, found["size_gib"].unit) == ("2.34", "GiB")
    assert (found["peak_memory_gib"].value, found["peak_memory_gib"].unit) == ("219", "MiB")
    assert found["ppl"].reads_as == "the original has 5.37 ± 0.12"
    assert "500 to 561" in found["decode_tokens_per_s"].reads_as


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.0123, "predicts the text 1.2 % worse"),
        (0.95, "predicts the text 5.0 % better"),
        (1.004, "no change beyond twice the standard error"),
        (0.997, "no change beyond twice the standard error"),
    ],
)
def test_a_change_within_the_noise_is_not_called_a_change(ratio: float, words: str) -> None:
    found = rows(metrics={"ppl_ratio": ratio})
    assert found["ppl_ratio"].reads_as == words


@pytest.mark.parametrize(
    ("kld", "word"),
    [(0.0013, "closer than"), (0.0014, "between"), (0.031, "between"), (0.0311, "further")],
)
def test_the_yardstick_is_llama_3_in_two_formats(kld: float, word: str) -> None:
    assert figures.yardstick(kld).startswith(word)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_plain_tables_fit_the_width_and_line_up(width: int) -> None:
    lines = figures.plain_table(list(rows().values()), width).splitlines()
    assert max(map(len, lines)) <= width
    starts = {line.index(" " * 3, 2) for line in lines if line.startswith("  bits_per_weight")}
    assert starts
    column = next(line for line in lines if line.startswith("  top1")).index("93.1")
    assert all(line[column - 3 : column] == "   " for line in lines)
    assert not any(line != line.rstrip() for line in lines)


def test_markdown_tables_have_one_row_per_measurement() -> None:
    found = list(rows().values())
    lines = figures.markdown_table(found).splitlines()
    assert len(lines) == len(found) + 2
    assert {line.count("|") for line in lines} == {4}
    assert "| Same first choice (`top1`) | 93.1 ± 0.4 % |" in "\n".join(lines)


@pytest.mark.parametrize(
    ("usage", "said"),
    [
        (
            {"peak_rss_bytes": 2**29, "peak_anon_bytes": 2**28},
            ", peak memory 0.25 GiB, 0.50 GiB with mapped files",
        ),
        ({"peak_rss_bytes": 2**29}, ", peak memory 0.50 GiB with mapped files"),
        ({"seconds": 1.0}, ""),
    ],
)
def test_a_peak_says_which_memory_it_is(usage: dict[str, float], said: str) -> None:
    assert figures.peaks(usage) == said


def test_what_answers_say_beside_their_figures_is_told_in_sentences() -> None:
    told = AnswerFigures(
        failed={"ended": [3], "loops": [3, 7, 9], "answer_flips": [1]},
        original={"ended": 10, "loops": 1, "empty": 0, "calls": 2},
        prompts=12,
        new_tokens=128,
        left_out=[LeftOut(line=5, why="it is long"), LeftOut(line=6, why="it is long")],
        without_tools=[LeftOut(line=11, why="the template shows none")],
    )
    first, ended, loops, left_out, without = answer_words.remarks(told)
    assert first == (
        "Of 12 answers the original itself ends 10 within 128 tokens, and loops in 1; valid tool "
        "calls: 2."
    )
    assert ended.endswith("prompts of line 3.")
    assert loops.endswith("prompts of lines 3, 7 and 9.")
    assert left_out == "Not asked: the prompts of lines 5 and 6 (it is long)."
    assert without.endswith("the prompts of line 11 (the template shows none).")
    many = answer_words.remarks(AnswerFigures(failed={"empty": list(range(1, 31))}))[1]
    assert many.endswith("19, 20 and 10 more.")


def test_answers_show_on_how_many_they_rest() -> None:
    told = AnswerFigures(metrics={"ended": 0.75}, stderr={"ended": 0.16}, asked={"ended": 8})
    (row,) = figures.fidelity_table(Metrics(metrics={}), answers=told)
    assert (row.value, row.unit) == ("75 ± 16", "%")
    assert row.reads_as == "of 8 answers which the original ends by itself"


def test_a_file_and_its_run_have_a_row_each_where_they_differ() -> None:
    figures_of = {**METRICS["metrics"], "kld_run": 0.02}
    told = {"how": "16-bit arithmetic", "positions": 4080}
    found = rows(metrics=figures_of, run=told, positions=4080)
    assert found["kld_run"].value == "0.0200"
    assert found["kld_run"].reads_as == "by default: 16-bit arithmetic"
    assert "as it runs" not in found["kld_mean"].reads_as
    fewer = rows(metrics=figures_of, run={**told, "positions": 1022}, positions=4080)
    assert fewer["kld_run"].reads_as.endswith("; 1,022 positions")


def test_a_file_that_is_scored_as_it_runs_has_one_row_that_says_so() -> None:
    figures_of = {**METRICS["metrics"], "kld_run": METRICS["metrics"]["kld_mean"]}
    found = rows(metrics=figures_of, run={"how": "", "positions": 4080})
    assert "kld_run" not in found
    assert found["kld_mean"].reads_as.endswith("; as it runs")
    assert "as it runs" not in rows()["kld_mean"].reads_as  # nobody scored its run
