"""Speeds that other tools print: read as they are printed, and nothing else is."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phipipe.errors import SourceError
from phipipe.evaluate import printed_speeds
from phipipe.evaluate.printed_speeds import Printed

CHIP = "Snapdragon 8 Elite"


def row(prompt: int = 0, answer: int = 0, *speeds: float, **more: Any) -> dict[str, Any]:
    """A test as llama-bench reports it."""
    return {
        "build_number": 6123,
        "cpu_info": CHIP,
        "gpu_info": "",
        "model_n_params": 3_821_079_552,
        "n_prompt": prompt,
        "n_gen": answer,
        "n_depth": 0,
        "avg_ts": sum(speeds) / max(1, len(speeds)),
        "samples_ts": list(speeds),
        **more,
    }


BENCH = [row(128, 0, 510.0, 512.5, 515.0), row(0, 64, 31.0, 31.25, 31.5)]
LITERT_COMMAND = """Benchmarking model: m (/data/m.litertlm)
Backend                    : gpu
Number of tokens in prefill: 256
Number of tokens in decode : 128
Speculative decoding       : auto
----- Results -----
Prefill speed:        1024.00 tokens/s
Decode speed:         20.50 tokens/s
Init time:            1.2500 s
Time to first token:  0.3000 s
"""
LITERT_INFO = """The fox ran. Prefill Speed: 9.0 tokens/sec.
BenchmarkInfo:
    - Init Total: 512.05 ms
  Prefill Turns (Total 1 turns):
    Prefill Turn 1: Processed 16 tokens in 372.56ms duration.
      Prefill Speed: 40.00 tokens/sec.
  Decode Turns (Total 1 turns):
    Decode Turn 1: Processed 3 tokens in 93.5ms duration.
      Decode Speed: 32.07 tokens/sec.
"""
MLX_BENCHMARK = """Running warmup..
Timing with prompt_tokens=512, generation_tokens=128, batch_size=1.
Trial 1:  prompt_tps=1000.000, generation_tps=40.000, peak_memory=2.000, total_time=3.1
Trial 2:  prompt_tps=1024.000, generation_tps=42.000, peak_memory=2.147, total_time=3.0
Trial 3:  prompt_tps=1048.000, generation_tps=44.000, peak_memory=2.100, total_time=3.0
Averages: prompt_tps=1024.000, generation_tps=42.000, peak_memory=2.082
"""
MLX_GENERATE = """==========
Prompt: 64 tokens, 320.000 tokens-per-sec
Generation: 100 tokens, 40.123 tokens-per-sec
Peak memory: 2.147 GB
"""
MLX_SWIFT = """Prompt:     64 tokens, 1,280.5 tokens/s, 0.05s
Generation: 100 tokens, 25.25 tokens/s, 3.96s
"""


def read(tmp_path: Path, text: str | bytes, prompt_tokens: int = 128) -> Printed:
    path = tmp_path / "printed.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return printed_speeds.read(path, prompt_tokens)


def refused(tmp_path: Path, text: str | bytes) -> SourceError:
    with pytest.raises(SourceError) as caught:
        read(tmp_path, text)
    return caught.value


def test_llama_bench_gives_every_run(tmp_path: Path) -> None:
    found = read(tmp_path, json.dumps(BENCH, indent=2))
    speed = found.speed(found.machine)
    assert (found.tool, found.backend, found.machine) == ("llama-bench 6123", "llamacpp", CHIP)
    assert speed.metrics == {
        "prefill_tokens_per_s": 512.5,
        "ttft_s": 128 / 512.5,
        "decode_tokens_per_s": 31.25,
    }
    assert speed.spread["decode_tokens_per_s"] == [31.0, 31.5]
    assert (speed.prompt_tokens, speed.new_tokens) == (128, 64)
    assert found.parameters == 3_821_079_552


@pytest.mark.parametrize("indent", [2, None])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_a_shell_made_of_it_is_read(tmp_path: Path, encoding: str, indent: int | None) -> None:
    logged = "[load] loaded CPU backend\n" + json.dumps(BENCH, indent=indent)
    assert read(tmp_path, logged.encode(encoding)).new_tokens == 64


def test_of_several_prompts_that_of_the_recipe_is_taken_else_the_longest(tmp_path: Path) -> None:
    tests = [row(n, 0, float(n)) for n in (64, 512, 128)] + [row(0, 64, 30.0)]
    tests.append(row(1024, 0, 9.0, n_depth=4096))
    text = json.dumps(tests, indent=2)
    assert read(tmp_path, text).prompt_tokens == 128
    assert read(tmp_path, text, 100).prompt_tokens == 512


@pytest.mark.parametrize(
    ("text", "tool", "metrics", "lengths"),
    [
        (
            LITERT_COMMAND,
            "litert-lm benchmark gpu",
            {"prefill_tokens_per_s": 1024, "decode_tokens_per_s": 20.5, "load_s": 1.25}
            | {"ttft_s": 0.3},
            (256, 128),
        ),
        (
            LITERT_INFO,
            "LiteRT-LM",
            {"prefill_tokens_per_s": 40, "decode_tokens_per_s": 32.07, "ttft_s": 0.4},
            (16, 3),
        ),
        (
            MLX_BENCHMARK,
            "mlx_lm.benchmark",
            {"prefill_tokens_per_s": 1024, "decode_tokens_per_s": 42, "ttft_s": 0.5}
            | {"peak_memory_gib": 2.147e9 / 2**30},
            (512, 128),
        ),
        (
            MLX_GENERATE,
            "MLX",
            {"prefill_tokens_per_s": 320, "decode_tokens_per_s": 40.123, "ttft_s": 0.2}
            | {"peak_memory_gib": 2.147e9 / 2**30},
            (64, 100),
        ),
        (
            MLX_SWIFT,
            "MLX",
            {"prefill_tokens_per_s": 1280.5, "decode_tokens_per_s": 25.25}
            | {"ttft_s": 64 / 1280.5},
            (64, 100),
        ),
    ],
)
def test_what_other_tools_print_is_read(
    tmp_path: Path, text: str, tool: str, metrics: dict[str, float], lengths: tuple[int, int]
) -> None:
    found = read(tmp_path, text)
    assert found.tool == tool
    assert found.speed("a phone").metrics == pytest.approx(metrics)
    assert (found.prompt_tokens, found.new_tokens) == lengths


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing of that kind", "holds no speeds that phipipe can read"),
        ("", "holds no speeds"),
        ('{\n"a": 1}', "not llama-bench's"),
        ("[\n]", "not llama-bench's"),
        ("[]", "not llama-bench's"),
        ('{"a": 1}', "not llama-bench's"),
        ("[\n1]", "not llama-bench's"),
        ("[\n{", "not valid JSON"),
        (json.dumps([row(8, 8, 1.0)], indent=1), "neither a prompt nor an answer"),
        (json.dumps([row(8, 0, 1.0)] * 2, indent=1), "8 tokens of a prompt in 2 ways"),
        (json.dumps([row(0, 8, 0.0)], indent=1), "`0.0`, which is no speed"),
        (json.dumps([row(0, 8, 1e9)], indent=1), "which is no speed"),
        (json.dumps([row(0, 8, samples_ts=["fast"])], indent=1), "`fast`, which is no speed"),
        (json.dumps([row(0, 8, samples_ts={"a": 1})], indent=1), "no list of numbers"),
        (json.dumps([row(0, True, 1.0)], indent=1), "which is no count"),
        (LITERT_COMMAND.replace("1024.00", "nan"), "`nan` for a number"),
        (MLX_BENCHMARK.replace("batch_size=1", "batch_size=4"), "4 prompts at once"),
        (MLX_SWIFT.replace("25.25", "25,250"), "`25,250` for a number"),
        (MLX_SWIFT + MLX_SWIFT.replace("     64", "     32"), "prompts of 2 lengths"),
        ("----- Results -----\n", "says no speed"),
    ],
)
def test_what_cannot_be_taken_says_why(tmp_path: Path, text: str, words: str) -> None:
    error = refused(tmp_path, text)
    assert words in error.message
    assert error.hint


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*BENCH[0], "x"]) | st.text(max_size=3), inner, max_size=6
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    text = "[\n" + json.dumps([BENCH[0], value])[1:]
    with contextlib.suppress(SourceError):
        assert read(tmp_path_factory.mktemp("any"), text).speed("x").metrics


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([LITERT_COMMAND, LITERT_INFO, MLX_BENCHMARK, MLX_SWIFT]), st.data())
def test_damaged_text_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    damaged = text[:start] + data.draw(st.text(max_size=12)) + text[stop:]
    with contextlib.suppress(SourceError):
        found = read(tmp_path_factory.mktemp("any"), damaged.encode("utf-8", "replace"))
        assert all(0 < value < 1e8 for value in found.speed("x").metrics.values())
