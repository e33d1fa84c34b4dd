"""What a manifest says of answers to prompts, within bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from phipipe.evaluate import answer_reports
from phipipe.models import prompts
from phipipe.package.bounds import Count, Figures, Key, Line, Part

Lines = Annotated[list[Count], Field(max_length=prompts.MAX_PROMPTS)]


class LeftOut(Part, answer_reports.LeftOut):
    """A prompt that nobody was asked, or whose tools nobody saw."""

    line: Count
    why: Line


Notes = Annotated[list[LeftOut], Field(max_length=prompts.MAX_PROMPTS)]


class Answers(Part, answer_reports.AnswerFigures):
    """What answers to prompts say of the artifact."""

    metrics: Figures = Field(default_factory=dict)
    stderr: Figures = Field(default_factory=dict)
    asked: Annotated[dict[Key, Count], Field(max_length=50)] = Field(default_factory=dict)
    failed: Annotated[dict[Key, Lines], Field(max_length=50)] = Field(default_factory=dict)
    original: Annotated[dict[Key, Count], Field(max_length=50)] = Field(default_factory=dict)
    prompts: Count = 0
    new_tokens: Count = 0
    left_out: Notes = Field(default_factory=list)
    without_tools: Notes = Field(default_factory=list)
