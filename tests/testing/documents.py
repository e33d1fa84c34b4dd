"""What a command printed with ``--json``, held against the schema that phipipe publishes for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from testing.places import ROOT

SCHEMAS = ROOT / "schemas"
GROUPS = ("devices", "backends", "toolchain", "cache", "runs", "schedule", "config", "recipes")


@cache
def validator(name: str) -> Draft202012Validator:
    """Of the file in the repository."""
    made = json.loads((SCHEMAS / "output" / f"{name}.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def fits(words: Sequence[object], out: str) -> Any:
    """The one document in ``out``, after a look at whether it is what ``phipipe WORDS``
    promises."""
    plain = [str(word) for word in words if str(word) != "--json"]
    name = plain[0]
    if name in GROUPS and len(plain) > 1:  # `devices NAME` is short for `devices show NAME`
        name = f"{name}-{'show' if name in ('devices', 'backends') else plain[1]}"
    document = json.loads(out, parse_constant=lambda word: f"{word} is no JSON")
    found = [
        f"{'/'.join(map(str, error.path))}: {error.message}"
        for error in validator(name).iter_errors(document)
    ]
    assert not found, found[:3]
    return document
