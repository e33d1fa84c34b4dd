"""Speeds that other tools print, on devices where phipipe does not run.

Read are ``llama-bench -o json``; ``litert-lm benchmark`` and what LiteRT-LM's own programs print
(``BenchmarkInfo``); ``mlx_lm.benchmark``, and the summary of MLX's generation in Python and Swift.
What others wrote comes in here: sizes and numbers are bounded.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.evaluate.reports import Speed
from phipipe.files import json_files
from phipipe.steps import Json
from phipipe.visible import visible

MAX_BYTES = 2**20
MOST = 1e7  # tokens in a second, or seconds; more is no measurement
MAX_WORDS = 100  # characters of a machine's name
_JSON = re.compile(r"^\s*(?:\[\s*(?:[{\]]|$)|\{\s*(?:\"|$))", re.M)
KINDS = "`llama-bench -o json`, `litert-lm benchmark` and `mlx_lm.benchmark`"


@dataclass(frozen=True, kw_only=True)
class Printed:
    """What ``tool`` printed, which times packages of ``backend``.

    ``samples``: metric → its values, one for each run; ``machine``: what it ran on, where the tool
    says so; ``parameters``: of the model, where it does.
    """

    tool: str
    backend: str
    samples: Mapping[str, Sequence[float]]
    prompt_tokens: int = 0
    new_tokens: int = 0
    machine: str = ""
    parameters: int | None = None

    def speed(self, machine: str) -> Speed:
        """As a measurement of ``machine``: medians, and the lowest and highest."""
        several = {name: values for name, values in self.samples.items() if len(values) > 1}
        return Speed(
            metrics={name: statistics.median(values) for name, values in self.samples.items()},
            spread={name: [min(values), max(values)] for name, values in several.items()},
            host={"machine": machine, "tool": self.tool},
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
        )


def read(path: Path, prompt_tokens: int) -> Printed:
    """What the tool printed that wrote the file ``path``; of several lengths of prompts that of
    ``prompt_tokens``, else the longest.

    Raises:
        SourceError: it cannot be read, no known tool prints this, or it holds no speed.
    """
    text = _text(json_files.read_bytes(path, MAX_BYTES))
    try:
        if starts := _JSON.search(text):  # behind what it may have logged
            raw = text[starts.start() :].encode()
            return _llama_bench(json_files.parse(raw, path), prompt_tokens)
        for reads in _READERS:
            if found := reads(text):
                return found
    except _Unfit as error:
        raise SourceError(f"`{path}` {error}", hint=error.hint) from None
    raise SourceError(
        f"`{path}` holds no speeds that phipipe can read", hint=f"it reads what {KINDS} print"
    )


class _Unfit(Exception):
    """Why a tool's output cannot be taken."""

    def __init__(self, message: str, hint: str = "give the tool's output as it is") -> None:
        super().__init__(message)
        self.hint = hint


def _text(raw: bytes) -> str:
    """PowerShell's ``>`` writes UTF-16."""
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    return raw.decode("utf-16" if wide else "utf-8-sig", "replace")


def _llama_bench(rows: Json, prompt_tokens: int) -> Printed:
    tests = rows if isinstance(rows, list) else [rows]
    if not tests or not all(isinstance(row, dict) and "n_prompt" in row for row in tests):
        raise _Unfit("is JSON, but not llama-bench's", "run `llama-bench -m model.gguf -o json`")
    fresh = [row for row in tests if not row.get("n_depth")]
    prompts = [row for row in fresh if row["n_prompt"] and not row.get("n_gen")]
    answers = [row for row in fresh if row.get("n_gen") and not row["n_prompt"]]
    lengths = {_count(row["n_prompt"]) for row in prompts}
    length = prompt_tokens if prompt_tokens in lengths else max(lengths, default=0)
    samples: dict[str, Sequence[float]] = {}
    chosen = [row for row in prompts if row["n_prompt"] == length]
    if row := _only(chosen, f"{length} tokens of a prompt"):
        samples["prefill_tokens_per_s"] = _series(row)
        samples["ttft_s"] = [length / value for value in samples["prefill_tokens_per_s"]]
    if answer := _only(answers, "an answer"):
        samples["decode_tokens_per_s"] = _series(answer)
    if not samples:
        raise _Unfit("times neither a prompt nor an answer", "run llama-bench with -p 128 -n 64")
    first = tests[0]
    return Printed(
        tool=_words(f"llama-bench {first.get('build_number', '')}"),
        backend="llamacpp",
        samples=samples,
        prompt_tokens=length,
        new_tokens=_count(answer["n_gen"]) if answer else 0,
        machine=_words(
            " and ".join(str(first[k]) for k in ("cpu_info", "gpu_info") if first.get(k))
        ),
        parameters=_count(first["model_n_params"]) if first.get("model_n_params") else None,
    )


def _only(rows: Sequence[Mapping[str, Json]], what: str) -> Mapping[str, Json] | None:
    """The one of ``rows`` that there may be."""
    if len(rows) > 1:
        raise _Unfit(
            f"times {what} in {len(rows)} ways", "give llama-bench one value for each option"
        )
    return rows[0] if rows else None


def _series(row: Mapping[str, Json]) -> list[float]:
    """Tokens in a second, one for each run."""
    values = row.get("samples_ts") or [row.get("avg_ts")]
    if not isinstance(values, list) or len(values) > 10_000:
        raise _Unfit("holds speeds that are no list of numbers")
    return [_figure(value) for value in values]


def _litert_command(text: str) -> Printed | None:
    """``litert-lm benchmark``."""
    if not re.search(r"^-+ Results -+\s*$", text, re.M):
        return None
    named = {
        "prefill_tokens_per_s": r"^Prefill speed:\s*(\S+) tokens/s",
        "decode_tokens_per_s": r"^Decode speed:\s*(\S+) tokens/s",
        "load_s": r"^Init time:\s*(\S+) s",
        "ttft_s": r"^Time to first token:\s*(\S+) s",
    }
    unit = re.search(r"^Backend\s*: (.+)$", text, re.M)
    return _printed(
        _words(f"litert-lm benchmark {unit[1] if unit else ''}"),
        "litert",
        {name: re.findall(pattern, text, re.M) for name, pattern in named.items()},
        re.findall(r"^Number of tokens in prefill\s*: *(\S+)", text, re.M),
        re.findall(r"^Number of tokens in decode\s*: *(\S+)", text, re.M),
    )


def _litert_info(text: str) -> Printed | None:
    """The block that LiteRT-LM's own programs print at their end."""
    _, found, block = text.rpartition("BenchmarkInfo:")
    if not found:
        return None
    turns = r"{} Turn \d+: Processed (\d+) tokens"
    return _printed(
        "LiteRT-LM",
        "litert",
        {
            "prefill_tokens_per_s": re.findall(r"Prefill Speed: (\S+) tokens/sec", block),
            "decode_tokens_per_s": re.findall(r"Decode Speed: (\S+) tokens/sec", block),
            "ttft_s": re.findall(r"Time to first token: (\S+) s", block),
        },
        re.findall(turns.format("Prefill"), block),
        re.findall(turns.format("Decode"), block),
    )


def _mlx_benchmark(text: str) -> Printed | None:
    """``mlx_lm.benchmark``."""
    asked = re.search(r"prompt_tokens=(\d+), generation_tokens=(\d+), batch_size=(\d+)", text)
    if not asked:
        return None
    if asked[3] != "1":
        raise _Unfit(f"times {asked[3]} prompts at once", "run it with `--batch-size 1`")
    trials = "\n".join(re.findall(r"^Trial \d+:.*$", text, re.M))
    return _printed(
        "mlx_lm.benchmark",
        "mlx",
        {
            "prefill_tokens_per_s": re.findall(r"prompt_tps=([^\s,]+)", trials),
            "decode_tokens_per_s": re.findall(r"generation_tps=([^\s,]+)", trials),
            "peak_memory_gib": re.findall(r"peak_memory=([^\s,]+)", trials),
        },
        [asked[1]],
        [asked[2]],
    )


def _mlx_summary(text: str) -> Printed | None:
    """What ``mlx_lm.generate`` and MLX Swift say at the end of an answer."""
    line = r"^{}:\s+(\S+) tokens, (\S+) tokens(?:/s|-per-sec)"
    prompts = re.findall(line.format("Prompt"), text, re.M)
    answers = re.findall(line.format("Generation"), text, re.M)
    if not prompts or not answers:
        return None
    return _printed(
        "MLX",
        "mlx",
        {
            "prefill_tokens_per_s": [speed for _, speed in prompts],
            "decode_tokens_per_s": [speed for _, speed in answers],
            "peak_memory_gib": re.findall(r"^Peak memory: (\S+) GB", text, re.M),
        },
        [count for count, _ in prompts],
        [count for count, _ in answers],
    )


_READERS: tuple[Callable[[str], Printed | None], ...] = (
    _litert_command,
    _litert_info,
    _mlx_benchmark,
    _mlx_summary,
)


def _printed(
    tool: str,
    backend: str,
    found: Mapping[str, Sequence[str]],
    prompts: Sequence[str],
    answers: Sequence[str],
) -> Printed:
    """What was ``found`` by metric, of prompts and answers of so many tokens."""
    samples = {name: [_number(text) for text in texts] for name, texts in found.items() if texts}
    if "decode_tokens_per_s" not in samples and "prefill_tokens_per_s" not in samples:
        raise _Unfit(f"is {tool}'s, but says no speed", "let it run to its end")
    lengths = {_count(text) for text in prompts}
    if len(lengths) > 1:
        raise _Unfit(f"has prompts of {len(lengths)} lengths", "keep the runs of one of them")
    length = lengths.pop() if lengths else 0
    if length and "ttft_s" not in samples and "prefill_tokens_per_s" in samples:
        samples["ttft_s"] = [length / value for value in samples["prefill_tokens_per_s"]]
    if peaks := samples.get("peak_memory_gib"):  # MLX counts in 10⁹ bytes
        samples["peak_memory_gib"] = [max(peaks) * 1e9 / 2**30]
    count = _count(answers[0]) if answers else 0
    return Printed(
        tool=tool, backend=backend, samples=samples, prompt_tokens=length, new_tokens=count
    )


def _number(text: str) -> float:
    """A number as tools print it: ``1234.5`` or ``1,234.5``."""
    text = text.rstrip(".,")
    if not re.fullmatch(r"\d+(\.\d+)?|\d{1,3}(,\d{3})+\.\d+|\d{1,3}(,\d{3}){2,}", text):
        raise _Unfit(f"has `{visible(text[:20])}` for a number", "write it as in 1234.5")
    return _figure(float(text.replace(",", "")))


def _figure(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST:
        raise _Unfit(f"has `{visible(str(value)[:20])}`, which is no speed or time")
    return float(value)


def _count(value: Json) -> int:
    """So many tokens, or parameters."""
    text = str(value).replace(",", "")
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,15}", text):
        raise _Unfit(f"has `{visible(str(value)[:20])}`, which is no count")
    return int(text)


def _words(text: str) -> str:
    return visible(" ".join(text.split()))[:MAX_WORDS]
