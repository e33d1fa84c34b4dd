"""Measurements as text: one place that decides digits, units and the words a number reads as.

Pure functions over what ``evaluate`` and ``measure`` wrote. A value with a standard error shows as
many digits as the error allows; small divergences are written as 1.14e-7.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from phipipe import words
from phipipe.evaluate import sampling
from phipipe.evaluate.answer_reports import AnswerFigures
from phipipe.evaluate.reports import Change, Metrics, Scored, Speed, Vision
from phipipe.evaluate.run_reports import SAME
from phipipe.metrics import METRICS, ROWS, Metric
from phipipe.steps import Json
from phipipe.words import counted

# Mean KL divergence of Llama-3-8B in llama.cpp's formats, against its own fp16: the field's usual
# yardstick. Another model, another text: an orientation, never a limit.
KLD_8_BIT = ("Q8_0", 0.0014)
KLD_4_BIT = ("Q4_K_M", 0.031)
# The coarsest 4-bit file in common use, of the same table (llama.cpp, tools/perplexity/README.md,
# LLaMA 3 8b): what predicts worse than that is not what people mean by a 4-bit model, and the board
# recommends no such file.
KLD_FIT = ("Q4_0", 0.072)
SMALL, LARGE = 1e-3, 1e15  # beyond these, numbers are written with an exponent
EPSILON = 2.0**-52  # what a double cannot tell from 1


@dataclass(frozen=True)
class Row:
    """One measurement: ``metric`` is its name in recipes' gates, ``group`` its kind."""

    group: str
    metric: str
    title: str
    value: str
    unit: str
    reads_as: str


def number(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits: ``0.0123``, ``1.14e-7``, ``12,300``."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if value == 0:
        return "0"
    exponent = Decimal(f"{value:.{digits - 1}e}").adjusted()
    if not SMALL <= abs(value) < LARGE:
        return _scaled(value, exponent, digits - 1)
    decimals = digits - 1 - exponent
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def with_error(value: float, stderr: float | None) -> str:
    """``0.00203 ± 0.00005``: the error with one digit (two, if it begins with 1 or 2), the value
    cut to match. An error below a double's own precision is none."""
    if not stderr or not math.isfinite(stderr) or not math.isfinite(value):
        return number(value)
    largest = max(abs(value), stderr)
    if stderr < largest * EPSILON:
        return number(value)
    digits = 2 if {f"{stderr:.{n}e}"[0] for n in (0, 1)} & {"1", "2"} else 1
    # power of ten of the last digit shown
    last = Decimal(f"{stderr:.{digits - 1}e}").adjusted() - digits + 1
    if not SMALL <= largest < LARGE:
        exponent = _rounded(largest, last).adjusted()
        decimals = max(exponent - last, 0)
        return f"{_scaled(value, exponent, decimals)} ± {_scaled(stderr, exponent, decimals)}"
    return " ± ".join(f"{round(x, -last):,.{max(-last, 0)}f}" for x in (value, stderr))


def _rounded(value: float, last: int) -> Decimal:
    """``value`` to the digit of ten to the power ``last``."""
    return Decimal(f"{Decimal(value).scaleb(-last):.0f}").scaleb(last)


def _scaled(value: float, exponent: int, decimals: int) -> str:
    # decimal: ten to the power of the smallest numbers' exponents is no float any more
    return f"{Decimal(value).scaleb(-exponent):.{decimals}f}e{exponent}"


def size(gib: float) -> tuple[str, str]:
    """A size in the unit that suits it, and that unit."""
    for unit, factor in (("GiB", 1), ("MiB", 2**10)):
        if gib * factor >= 1:
            return number(gib * factor), unit
    return number(gib * 2**20), "KiB"


def host_words(host: Mapping[str, object]) -> str:
    """The machine in one line."""
    known = host.get("cores") and host.get("processor")
    cores = f"{host['cores']} cores of {host['processor']}" if known else ""
    memory = f"{host['memory_gib']} GiB of memory" if host.get("memory_gib") else ""
    system = " ".join(str(host[name]) for name in ("system", "machine") if host.get(name))
    machine = ", ".join(part for part in (cores, memory, system) if part)
    tool = f", as {host['tool']} printed" if host.get("tool") else ""
    return (machine or "an unrecorded machine") + tool


def peaks(usage: Mapping[str, Json]) -> str:
    """``, peak memory 0.31 GiB, 0.52 GiB with mapped files, 0.40 GiB of NVIDIA L4``: what a step
    had for itself, with the files that it mapped, and of a GPU."""
    kinds = (
        ("", "peak_anon_bytes"),
        (" with mapped files", "peak_rss_bytes"),
        (f" of {usage.get('gpu')}", "peak_gpu_bytes"),
    )
    parts = [f"{words.gib(usage[name])}{kind}" for kind, name in kinds if usage.get(name)]
    return f", peak memory {', '.join(parts)}" if parts else ""


def shown(metric: Metric, value: float, stderr: float | None = None) -> tuple[str, str]:
    """A figure as tables show it, and its unit: digits by its error or the metric, bytes by their
    size."""
    if metric.is_size and value > 0:
        return size(value)
    value, error = value * metric.factor, stderr and stderr * metric.factor
    return (with_error(value, error) if stderr else number(value, metric.digits)), metric.unit


def fidelity_table(
    metrics: Metrics,
    speed: Speed | None = None,
    baseline: Scored | None = None,
    vision: Vision | None = None,
    answers: AnswerFigures | None = None,
) -> list[Row]:
    """Rows for everything that was measured, in the order of the table of metrics; one for both
    divergences where nothing differs.

    Args:
        baseline: its perplexity is shown beside the artifact's.
    """
    values = {
        **metrics.metrics,
        **(vision.metrics if vision else {}),
        **(answers.metrics if answers else {}),
        **(speed.metrics if speed else {}),
    }
    same = metrics.run is not None and metrics.run.how == SAME
    words = {
        "yardstick": yardstick(values.get("kld_mean", 0.0)) + ("; as it runs" if same else ""),
        "run": _run(metrics),
        "original": _original(metrics, baseline),
        "change": _change(values, metrics.stderr),
        "prompt": _prompt(speed),
        "pictures": _questions(vision) if vision else "",
    }
    errors = {**metrics.stderr, **(answers.stderr if answers else {})}
    rows = []
    for metric in ROWS:
        if metric.name in values and not (same and metric.name == "kld_run"):
            value, unit = shown(metric, values[metric.name], errors.get(metric.name))
            asked = answers.asked.get(metric.name, 0) if answers else 0
            reading = metric.reads_as.format(asked=counted(asked, "answer"), **words)
            reading += _spread(metric, speed)
            rows.append(Row(metric.kind, metric.name, metric.title, value, unit, reading))
    return rows


def yardstick(kld_mean: float) -> str:
    """Where a mean KL divergence lies on the field's usual scale, in words."""
    (eight, low), (four, high) = KLD_8_BIT, KLD_4_BIT
    if kld_mean < low:
        return f"closer than a usual 8-bit model ({eight}: {low:g})"
    if kld_mean <= high:
        return f"between usual 8-bit ({eight}: {low:g}) and 4-bit ones ({four}: {high:g})"
    return f"further off than a usual 4-bit model ({four}: {high:g})"


def _run(metrics: Metrics) -> str:
    """What the runtime does by default, and on how many positions that was scored if on fewer."""
    run = metrics.run
    how = f"by default: {run.how}" if run and run.how else "as the runtime computes by default"
    fewer = run is not None and 0 < run.positions < metrics.positions
    return f"{how}; {counted(run.positions, 'position')}" if run and fewer else how


def _original(metrics: Metrics, baseline: Scored | None) -> str:
    """The original's perplexity on what was scored."""
    if baseline is None:
        return ""
    there = metrics.sampling and sampling.original(metrics.sampling)
    return f"the original has {with_error(*(there or (baseline.ppl, baseline.ppl_stderr)))}"


def _change(values: Mapping[str, float], errors: Mapping[str, float]) -> str:
    change, error = values.get("ppl_ratio", 1.0) - 1, errors.get("ppl_ratio", 0.0)
    if abs(change) <= 2 * error:
        return "no change beyond twice the standard error"
    return (
        f"predicts the text {number(100 * abs(change), 2)} % {'worse' if change > 0 else 'better'}"
    )


def adapter_change(change: Change, ppl: float) -> str:
    """What an adapter changed of its base, in one sentence; ``ppl`` is the merged model's."""
    if not change.metrics:
        return "not measured: the adapter's tokenizer reads the text as other tokens than its base"
    kld, top1 = (
        " ".join(shown(METRICS[name], change.metrics[name], change.stderr.get(name)))
        for name in ("kld_mean", "top1")
    )
    return (
        f"the original is {kld} from its base (mean KL divergence) and has its first choice for "
        f"{top1} of the positions; the base has a perplexity of {number(change.base_ppl)}, the "
        f"original {number(ppl)}"
    )


def _prompt(speed: Speed | None) -> str:
    if speed is None or not speed.prompt_tokens:
        return "prompt"
    return f"prompt of {counted(speed.prompt_tokens, 'token')}"


def _questions(vision: Vision) -> str:
    return (
        f"{counted(vision.positions, 'position')} of questions about "
        f"{counted(len(vision.vectors), 'picture')}"
    )


def _spread(metric: Metric, speed: Speed | None) -> str:
    """Lowest and highest of the repetitions, in the unit of the figure."""
    if speed is None or metric.name not in speed.spread:
        return ""
    low, high = (number(metric.factor * end) for end in speed.spread[metric.name])
    return f"; {low} to {high}"


def plain_table(rows: Sequence[Row], width: int = 100) -> str:
    """The rows as aligned text, no line longer than ``width`` characters."""
    cells = [(row.metric, f"{row.value} {row.unit}".rstrip(), row.reads_as) for row in rows]
    first, second = (max((len(c[i]) for c in cells), default=0) for i in (0, 1))
    indent = " " * (first + second + 8)
    lines = []
    for metric, value, reads_as in cells:
        head = f"  {metric:{first}}   {value:{second}}   "
        filled = textwrap.wrap(reads_as, width, initial_indent=head, subsequent_indent=indent)
        lines += filled or [head.rstrip()]
    return "\n".join(lines)


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, with the names that gates use."""
    lines = ["| | value | reads as |", "|---|---:|---|"]
    lines += [
        f"| {r.title} (`{r.metric}`) | {f'{r.value} {r.unit}'.rstrip()} | {r.reads_as} |"
        for r in rows
    ]
    return "\n".join(lines)
