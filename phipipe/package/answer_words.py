"""What answers to prompts say beside their figures, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from phipipe.evaluate.answer_reports import AnswerFigures, LeftOut
from phipipe.words import counted

MOST_LINES = 20  # that a sentence names
BAD = {
    "ended": "not ended by themselves, where the original's are",
    "loops": "loops, where the original's are none",
    "empty": "empty, where the original's are not",
    "tool_json_valid": "no valid tool calls, where the original's are",
}


def remarks(answers: AnswerFigures) -> list[str]:
    """What a reader must know: how the original itself does, which answers are bad, what was not
    asked."""
    told = [_original(answers)]
    told += [
        f"Answers that are {words}: prompts of {_lines(answers.failed[name])}."
        for name, words in BAD.items()
        if answers.failed.get(name)
    ]
    told += [f"Not asked: {_reasons(answers.left_out)}."] if answers.left_out else []
    if answers.without_tools:
        told.append(f"Asked without their tools: {_reasons(answers.without_tools)}.")
    return told


def _original(answers: AnswerFigures) -> str:
    own = answers.original
    told = (
        f"Of {counted(answers.prompts, 'answer')} the original itself ends {own.get('ended', 0)} "
        f"within {counted(answers.new_tokens, 'token')}, and loops in {own.get('loops', 0)}"
    )
    return f"{told}; valid tool calls: {own['calls']}." if "calls" in own else f"{told}."


def _reasons(notes: Sequence[LeftOut]) -> str:
    """Every reason once, with the lines that it holds for."""
    reasons = dict.fromkeys(note.why for note in notes)
    return "; ".join(
        f"the prompts of {_lines([note.line for note in notes if note.why == why])} ({why})"
        for why in reasons
    )


def _lines(numbers: Sequence[int]) -> str:
    """``line 3``, ``lines 3, 7 and 9``, ``lines 1, 2 … and 30 more``."""
    shown = [str(number) for number in numbers[:MOST_LINES]]
    if len(numbers) > MOST_LINES:
        return f"lines {', '.join(shown)} and {len(numbers) - MOST_LINES} more"
    *first, last = shown
    return f"lines {', '.join(first)} and {last}" if first else f"line {last}"
