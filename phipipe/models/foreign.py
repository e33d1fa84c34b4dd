"""Checkpoints that no build can start from, whatever the backend: models of another purpose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.steps import Json

# Heads that give something else than the next token; and none at all.
_OTHER = re.compile(
    r".*For(SequenceClassification|TokenClassification|QuestionAnswering|MaskedLM|MultipleChoice|"
    r"Embedding\w*|ImageClassification|RewardModel\w*)|.*(?<!LMHead)Model"
)


def refuse(path: Path, config: Mapping[str, Json]) -> None:
    """Refuse what ``config``, the content of ``path``, says is no model that writes.

    Raises:
        SourceError: names the class.
    """
    named = config.get("architectures")
    for name in named if isinstance(named, list) else ():
        if isinstance(name, str) and _OTHER.fullmatch(name):
            raise SourceError(
                f"`{path}` is of no model that writes text: {json_files.shown(name)} has "
                f"another head, or none",
                hint="give a checkpoint of a causal language model (`…ForCausalLM`)",
            )
