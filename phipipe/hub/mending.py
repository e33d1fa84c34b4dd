"""A source whose staged copy has other settings than the files as they came."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from phipipe.errors import SourceError
from phipipe.files.json_files import shown
from phipipe.hub.take import Original
from phipipe.models import stop_tokens, tokenizer_reading
from phipipe.models.remarks import Remark
from phipipe.models.tokenizer_files import MAX_TOKENS
from phipipe.steps import Json, Step

UNMENDED = "unmended"  # the step that takes the files as they came
Changes = Mapping[str, Mapping[str, Json]]  # file of the staged copy → keys to set in it


def _is_ours(name: str, key: str, value: Json) -> bool:
    """Whether phipipe itself sets ``key`` in the file ``name`` to such a ``value``."""
    if (name, key) == (tokenizer_reading.SETTINGS, "tokenizer_class"):
        return bool(value == tokenizer_reading.AS_IT_IS)
    return (name, key) == (stop_tokens.GENERATION, "eos_token_id") and (
        isinstance(value, list) and all(type(i) is int and 0 <= i < MAX_TOKENS for i in value)
    )


def mended(original: Original, changes: Changes, said: Sequence[Remark] = ()) -> Original:
    """``original`` with ``changes`` in its staged copy, and ``said`` why.

    Raises:
        SourceError: phipipe makes no such changes; a stranger's manifest may name them.
    """
    for name, settings in changes.items():
        for key, value in settings.items():
            if not _is_ours(name, key, value):
                raise SourceError(f"phipipe never sets `{shown(key)}` in `{shown(name)}`")
    checkpoint = original.checkpoint
    step = Step(
        name="source",
        runs="models/mend_tokenizer",
        version=1,
        needs={"source": UNMENDED},
        params={"settings": {name: dict(settings) for name, settings in changes.items()}},
        borrows=True,  # where what it mends is borrowed
        keep="material",
        takes_over="source",
        output_bytes=original.step.output_bytes,
        taken_bytes=original.step.output_bytes if os.name != "nt" else 0,
    )
    return replace(
        original,
        checkpoint=replace(checkpoint, remarks=(*checkpoint.remarks, *said)),
        before=(*original.before, replace(original.step, name=UNMENDED)),
        step=step,
    )
