"""Answers beside the original's, in figures: whether they end, loop, are empty, begin alike, call
tools.

What an average over positions cannot show: a file with a low KL divergence may still never end its
answers. The original is the yardstick of every share. A prompt counts only where the original does
well, so that a model which never ends an answer by itself fails no build of it:

- ``ended``: of the answers that the original ends by itself, those that end here
- ``loops``: of those in which the original does not loop, those that do here
- ``empty``: of those in which the original says something, those without a visible character
- ``tool_json_valid``: of those that are valid calls in the original, those that are here
- ``answer_flips``: of all, those whose first token is another
- ``first_divergence``: over all, the mean number of tokens before the first that differs

Where no prompt counts, a share is that of a perfect build: 1 of ``ended`` and ``tool_json_valid``,
0 of the others. ``tool_json_valid`` is missing where no prompt with tools was asked.

A loop is an answer that the limit cut off and whose end is a block of tokens, repeated: the last
``max(3 × block, 24)`` tokens have the block's length as their period. Three times, because each
repetition makes the next one likelier, and greedy decoding then does not leave it (Holtzman et al.
2020, "The Curious Case of Neural Text Degeneration", section 3; Xu et al. 2022, "Learning to Break
the Loop"); 24 tokens, so that a row of dashes or dots is none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phipipe.evaluate.answer_reports import Reply
from phipipe.evaluate.sanity import common_prefix

REPEATS = 3
LEAST_TOKENS = 24  # of a loop
PERFECT = {"ended": 1.0, "loops": 0.0, "empty": 0.0, "answer_flips": 0.0, "tool_json_valid": 1.0}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is to be said of one answer alone. ``call``: whether it is a valid call of the prompt's
    tools; None where it has none, or the template does not show them."""

    ids: Sequence[int]
    ended: bool
    loops: bool
    empty: bool
    call: bool | None = None


def judge(ids: Sequence[int], text: str, *, ended: bool, call: bool | None = None) -> Judged:
    """What is to be said of the answer ``ids``, which reads ``text``."""
    loops = not ended and cycle(ids) > 0
    return Judged(ids=ids, ended=ended, loops=loops, empty=not text.strip(), call=call)


def ends(
    ids: Sequence[int], limit: int, stops: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> bool:
    """Whether an answer of at most ``limit`` tokens ended by itself: with one of the tokens
    ``stops``, or before the limit with another that shows nothing. (Some runtimes know more ends
    than a model's config. Where a cache is full, the last token is a word.)"""
    if not ids:
        return False
    return ids[-1] in stops or (len(ids) < limit and not decode(ids[-1:]))


def cycle(ids: Sequence[int]) -> int:
    """The length of the shortest block whose repetition ``ids`` end with; 0 where they end with
    none.

    One pass over the reversed ids: Gusfield's Z-array ("Algorithms on Strings, Trees, and
    Sequences", 1.4) says how far each shift agrees with the start.
    """
    backwards = list(reversed(ids))
    z, left, right = [0] * len(backwards), 0, 0
    for i in range(1, len(backwards)):
        if i < right:
            z[i] = min(right - i, z[i - left])
        while i + z[i] < len(backwards) and backwards[z[i]] == backwards[i + z[i]]:
            z[i] += 1
        if i + z[i] > right:
            left, right = i, i + z[i]
        if i + z[i] >= max(REPEATS * i, LEAST_TOKENS):
            return i
    return 0


def reply(line: int, original: Judged, here: Judged, texts: tuple[str, str]) -> Reply:
    """One prompt's answers side by side; ``texts``: the original's and this one's."""
    same = common_prefix(original.ids, here.ids)
    return Reply(
        line=line,
        original=texts[0],
        text=texts[1],
        same_tokens=same,
        ended=_both(original.ended, here.ended),
        loops=None if original.loops else here.loops,
        empty=None if original.empty else here.empty,
        answer_flips=same == 0,
        tool_json_valid=_both(bool(original.call), bool(here.call)),
    )


def _both(original: bool, here: bool) -> bool | None:
    """Whether what the original does is done here; None where it does not."""
    return here if original else None


def figures(
    replies: Sequence[Reply], has_tools: bool
) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """Metrics by the names of ``metrics.METRICS``, their standard errors, and on how many prompts
    each rests.

    The error of a share p of n is sqrt(p (1 - p) / (n - 1)), that of the mean number of tokens the
    standard deviation over prompts / sqrt(n); none of fewer than two prompts.
    """
    metrics, errors, counts = dict[str, float](), dict[str, float](), dict[str, int]()
    for name, perfect in PERFECT.items():
        if name == "tool_json_valid" and not has_tools:
            continue
        counted = [getattr(one, name) for one in replies if getattr(one, name) is not None]
        n = counts[name] = len(counted)
        share = metrics[name] = sum(counted) / n if n else perfect
        if n > 1:
            errors[name] = math.sqrt(share * (1 - share) / (n - 1))
    lengths = [one.same_tokens for one in replies]
    counts["first_divergence"] = len(lengths)
    metrics["first_divergence"] = statistics.fmean(lengths)
    if len(lengths) > 1:
        errors["first_divergence"] = statistics.stdev(lengths) / math.sqrt(len(lengths))
    return metrics, errors, counts


def failed(replies: Sequence[Reply]) -> dict[str, list[int]]:
    """Metric → lines of the prompts that count against it."""
    bad = {name: perfect == 0.0 for name, perfect in PERFECT.items()}
    lines = {
        name: [one.line for one in replies if getattr(one, name) is value]
        for name, value in bad.items()
    }
    return {name: found for name, found in lines.items() if found}
