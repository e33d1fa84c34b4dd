"""Files of what the original and an artifact answer to prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from phipipe.evaluate.reports import Figures, Report, Words
from phipipe.steps import Json


class LeftOut(Report):
    """A prompt that nobody was asked, or whose tools nobody saw; ``line`` is that of its file."""

    line: int
    why: Words


class Question(Report):
    """A prompt as the original's chat template renders it, and the original's greedy answer."""

    line: int
    rendered: Words
    ids: list[int]
    answer: list[int]
    text: Words
    tools: list[dict[str, Json]] = Field(default_factory=list)  # none that nobody is shown


class Questions(Report):
    """``questions.json``: what every artifact is asked; ``ends``: the tokens that end an answer."""

    FILE = "questions.json"

    new_tokens: int
    ends: list[int]
    questions: list[Question]
    left_out: Sequence[LeftOut] = Field(default_factory=list)
    without_tools: Sequence[LeftOut] = Field(default_factory=list)


class Reply(Report):
    """An artifact's answer beside the original's. None where the original is no yardstick:
    ``answers`` says when a prompt counts."""

    line: int
    original: Words
    text: Words
    same_tokens: int
    ended: bool | None
    loops: bool | None
    empty: bool | None
    answer_flips: bool
    tool_json_valid: bool | None


class AnswerFigures(Report):
    """What the answers of an artifact say of it, in figures; what a package keeps.

    ``asked``: on how many prompts each figure rests; ``failed``: lines of the prompts that count
    against it; ``original``: how many of all ``prompts`` the original itself ends, and so on.
    """

    metrics: Figures = Field(default_factory=dict)
    stderr: Figures = Field(default_factory=dict)
    asked: dict[str, int] = Field(default_factory=dict)
    failed: Mapping[str, Sequence[int]] = Field(default_factory=dict)
    original: dict[str, int] = Field(default_factory=dict)
    prompts: int = 0
    new_tokens: int = 0
    left_out: Sequence[LeftOut] = Field(default_factory=list)
    without_tools: Sequence[LeftOut] = Field(default_factory=list)


class Answers(AnswerFigures):
    """``answers.json``: that, and the answers themselves."""

    FILE = "answers.json"

    replies: list[Reply] = Field(default_factory=list)
