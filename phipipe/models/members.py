"""A member of the family: repositories of one shape."""

from __future__ import annotations

from dataclasses import dataclass

from phipipe.models.family_configs import Config

PHI, NEIGHBOUR = "phi", "neighbour"


@dataclass(frozen=True, kw_only=True)
class Member:
    """Repositories of one shape. ``marks`` are the keys of ``config`` that tell it from others of
    its architecture. ``group`` is "phi", or "neighbour": not of the Phi family, but of the same
    block."""

    name: str
    repos: tuple[str, ...]
    config: Config
    marks: tuple[str, ...] = ()
    # "sentencepiece", "gpt2" (byte-level BPE in tokenizer.json) or "code" (a class of its own)
    tokenizer: str
    # transformers has the architecture built in; the others exist as code on the hub alone
    native: bool = True
    group: str = PHI
    # of Unicode, into which its tokenizer brings texts first; "" where it takes them as they are
    normal_form: str = ""
    row: str  # members that every runtime treats alike share a row of the support table
