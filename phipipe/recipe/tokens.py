"""How many tokens of the evaluation text are scored: a number, or as many as it takes (`auto`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import PlainValidator, WithJsonSchema

from phipipe.suggestions import near, show

Auto = Literal["auto"]
AUTO: Auto = "auto"
LEAST_TOKENS = 256  # of a text, to learn from or to evaluate on
MOST_TOKENS = 10_000_000
USUAL_TOKENS = 4096  # where a recipe says nothing of it
# What `auto` scores at most. The original reads the text in one sweep through its layers, before
# any build is there that could end it: all that it may be asked about is paid for in advance, with
# 4 bytes × vocabulary of disk for each token (3.3 GB at 200,000 words). Mean divergences of trained
# models with 4 bits had standard errors of 3 to 10 % there, between windows.
CAP_TOKENS = 4096
_NUMBER = {"type": "integer", "minimum": LEAST_TOKENS, "maximum": MOST_TOKENS}


def _tokens(given: object) -> int | Auto | None:
    if given is None:
        return None
    if given == AUTO:
        return AUTO
    if isinstance(given, bool) or not isinstance(given, int):
        text = given.strip() if isinstance(given, str) else ""
        guess = "; take the quotes away" if text.isdecimal() else near(text.lower(), [AUTO])
        raise ValueError(f"expected a whole number or `{AUTO}`, got {show(given)}{guess}")
    if given < LEAST_TOKENS:
        raise ValueError(f"must be at least {LEAST_TOKENS}, not {show(given)}")
    if given > MOST_TOKENS:
        raise ValueError(f"must be at most {MOST_TOKENS}, not {show(given)}")
    return given


Tokens = Annotated[
    int | Auto | None,
    PlainValidator(_tokens),
    WithJsonSchema({"anyOf": [_NUMBER, {"const": AUTO}, {"type": "null"}]}),
]
"""None where the recipe says nothing: ``USUAL_TOKENS``; ``AUTO`` for models above 10⁹
parameters."""


def most(tokens: int | Auto | None, window: int) -> int:
    """How many tokens are scored at most, in windows of ``window``; at least one is."""
    if tokens == AUTO:
        return max(CAP_TOKENS, window)
    return USUAL_TOKENS if tokens is None else tokens
