"""Measurements as text: one place that decides digits, units and the words a number reads as.

Pure functions over what ``evaluate`` and ``measure`` wrote. A value with a standard error shows as many
digits as the error allows; small divergences are written as 1.14e-7.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]

# Mean KL divergence of Llama-3-8B in llama.cpp's formats, against its own fp16: the field's usual yardstick.
# Another model, another text: an orientation, never a limit.
KLD_8_BIT = ("Q8_0", 0.0014)
KLD_4_BIT = ("Q4_K_M", 0.031)
# The coarsest 4-bit file in common use, of the same table (llama.cpp, tools/perplexity/README.md, LLaMA 3 8b): what
# predicts worse than that is not what people mean by a 4-bit model, and the board recommends no such file.
KLD_FIT = ("Q4_0", 0.072)
SMALL = 1e-3  # below this, numbers are written with an exponent


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: ``metric`` is its name in recipes' gates, ``group`` is fidelity, pictures, size or speed."""

    group: str
    metric: str
    title: str
    value: str
    unit: str
    reads_as: str


def counted(count: int, noun: str) -> str:
    """``1 build``, ``2 builds``, ``1,000 builds``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits: ``0.0123``, ``1.14e-7``, ``12,300``."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if value == 0:
        return "0"
    exponent = _exponent(float(f"{value:.{digits - 1}e}"))
    if abs(value) < SMALL:
        return _scaled(value, exponent, digits - 1)
    decimals = digits - 1 - exponent
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def with_error(value: float, stderr: float | None) -> str:
    """``0.00203 ± 0.00005``: the error with one digit (two, if it begins with 1 or 2), the value cut to match."""
    if not stderr or not math.isfinite(stderr) or not math.isfinite(value):
        return number(value)
    digits = 2 if {f"{stderr:.{n}e}"[0] for n in (0, 1)} & {"1", "2"} else 1
    last = _exponent(float(f"{stderr:.{digits - 1}e}")) - digits + 1  # power of ten of the last digit shown
    largest = max(abs(value), stderr)
    if largest < SMALL:
        exponent = _exponent(round(largest, -last))
        decimals = max(exponent - last, 0)
        return f"{_scaled(value, exponent, decimals)} ± {_scaled(stderr, exponent, decimals)}"
    return " ± ".join(f"{round(x, -last):,.{max(-last, 0)}f}" for x in (value, stderr))


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def _scaled(value: float, exponent: int, decimals: int) -> str:
    return f"{value / 10.0**exponent:.{decimals}f}e{exponent}"


def size(gib: float) -> tuple[str, str]:
    """A size in the unit that suits it, and that unit."""
    for unit, factor in (("GiB", 1), ("MiB", 2**10)):
        if gib * factor >= 1:
            return number(gib * factor), unit
    return number(gib * 2**20), "KiB"


def fidelity_table(metrics: Report, speed: Report | None = None, baseline: Report | None = None) -> list[Row]:
    """Rows for everything that was measured.

    Args:
        metrics: ``metrics.json``, or the manifest's ``fidelity``.
        speed: ``speed.json``, or the manifest's ``speed``.
        baseline: ``baseline.json``; its perplexity is shown beside the artifact's.
    """
    values, errors = metrics["metrics"], metrics.get("stderr", {})
    rows = [*_divergences(values, errors), *_agreement(values, errors, baseline), *_pictures(metrics), *_sizes(values)]
    return rows + (_speeds(speed) if speed else [])


def _divergences(values: Report, errors: Report) -> list[Row]:
    words = {
        "kld_mean": ("KL divergence, mean", yardstick(values.get("kld_mean", 0.0))),
        "kld_median": ("KL divergence, median", "half of all positions are closer to the original"),
        "kld_p99": ("KL divergence, 99 %", "1 position in 100 is further from the original"),
        "kld_max": ("KL divergence, highest", "the worst single position"),
    }
    return [
        Row(
            group="fidelity",
            metric=name,
            title=title,
            value=with_error(values[name], errors.get(name)),
            unit="nats",
            reads_as=reads_as,
        )
        for name, (title, reads_as) in words.items()
        if name in values
    ]


def yardstick(kld_mean: float) -> str:
    """Where a mean KL divergence lies on the field's usual scale, in words."""
    (eight, low), (four, high) = KLD_8_BIT, KLD_4_BIT
    if kld_mean < low:
        return f"closer than a usual 8-bit model ({eight}: {low:g})"
    if kld_mean <= high:
        return f"between usual 8-bit ({eight}: {low:g}) and 4-bit ones ({four}: {high:g})"
    return f"further off than a usual 4-bit model ({four}: {high:g})"


def _agreement(values: Report, errors: Report, baseline: Report | None) -> list[Row]:
    rows = []
    if "top1" in values:
        shown = with_error(100 * values["top1"], 100 * errors.get("top1", 0.0))
        kept = "how often the likeliest next token is the original's"
        rows.append(("top1", "Same first choice", shown, "%", kept))
    if "ppl" in values:
        original = ""
        if baseline is not None:
            original = f"the original has {with_error(baseline['ppl'], baseline.get('ppl_stderr'))}"
        rows.append(("ppl", "Perplexity", with_error(values["ppl"], errors.get("ppl")), "", original))
    if "ppl_ratio" in values:
        shown = with_error(values["ppl_ratio"], errors.get("ppl_ratio"))
        rows.append(("ppl_ratio", "Perplexity / original's", shown, "", _change(values, errors)))
    if "dp_rms" in values:
        meaning = "typical change of the true token's probability"
        rows.append(("dp_rms", "Δp, root mean square", number(100 * values["dp_rms"]), "% points", meaning))
    return [
        Row(group="fidelity", metric=metric, title=title, value=value, unit=unit, reads_as=reads_as)
        for metric, title, value, unit, reads_as in rows
    ]


def _pictures(metrics: Report) -> list[Row]:
    """Rows of a model that sees, from what ``vision_scoring.compare`` wrote; none for others."""
    if "vision" not in metrics:
        return []
    values = metrics["vision"]["metrics"]
    shown = {
        "image_kld_mean": ("KL divergence after pictures, mean", number(values["image_kld_mean"]), "nats"),
        "image_top1": ("Same first choice after pictures", number(100 * values["image_top1"]), "%"),
    }
    meaning = (
        f"{metrics['vision']['positions']} positions of questions about {len(metrics['vision']['vectors'])} pictures"
    )
    return [
        Row(group="pictures", metric=name, title=title, value=value, unit=unit, reads_as=meaning)
        for name, (title, value, unit) in shown.items()
    ]


def _change(values: Report, errors: Report) -> str:
    change, error = values["ppl_ratio"] - 1, errors.get("ppl_ratio", 0.0)
    if abs(change) <= 2 * error:
        return "no change beyond twice the standard error"
    return f"predicts the text {number(100 * abs(change), 2)} % {'worse' if change > 0 else 'better'}"


def _sizes(values: Report) -> list[Row]:
    rows = []
    if "size_gib" in values:
        shown, unit = size(values["size_gib"])
        rows.append(("size_gib", "Size", shown, unit, "all files that the runtime needs"))
    if "bits_per_weight" in values:
        meaning = "weight files / the original's parameters"
        rows.append(("bits_per_weight", "Bits per weight", number(values["bits_per_weight"]), "bits", meaning))
    return [
        Row(group="size", metric=metric, title=title, value=value, unit=unit, reads_as=reads_as)
        for metric, title, value, unit, reads_as in rows
    ]


def _speeds(speed: Report) -> list[Row]:
    values, spread = speed["metrics"], speed.get("spread", {})
    prompt = f"prompt of {speed['prompt_tokens']} tokens" if "prompt_tokens" in speed else "prompt"
    words = {
        "decode_tokens_per_s": ("Answer speed", "tokens/s", "tokens after the first"),
        "prefill_tokens_per_s": ("Prompt speed", "tokens/s", f"reading a {prompt}"),
        "ttft_s": ("Time to first token", "s", f"after a {prompt}"),
        "load_s": ("Load", "s", "opening the model, and one token"),
        "peak_memory_gib": ("Peak memory", "", "whole process: runtime and interpreter included"),
    }
    rows = []
    for name, (title, unit, meaning) in words.items():
        if name not in values:
            continue
        shown, unit = size(values[name]) if name.endswith("_gib") else (number(values[name]), unit)
        if name in spread:
            meaning += f"; {number(spread[name][0])} to {number(spread[name][1])}"
        rows.append(Row(group="speed", metric=name, title=title, value=shown, unit=unit, reads_as=meaning))
    return rows


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
    lines += [f"| {r.title} (`{r.metric}`) | {f'{r.value} {r.unit}'.rstrip()} | {r.reads_as} |" for r in rows]
    return "\n".join(lines)
