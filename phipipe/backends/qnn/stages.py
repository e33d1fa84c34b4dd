"""A folder of static graphs: which files it has, and what ``static.json`` says of them.

A stage is one part of the layers, or the LM head: a graph for prompts, one for single tokens, and
their weights, which lie in one file beside them. A folder holds all stages and what runs before
them, or one stage alone. Light: no toolchain is needed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from phipipe.steps import Json

FACTS = "static.json"
CONFIG = "genai_config.json"
EMBEDDING = "embedding.onnx"
HEAD = "head"
LENGTHS = ("prompt", "token")


def ranges_of(layers: int, parts: int) -> list[range]:
    """``layers`` consecutive numbers in ``parts`` ranges that differ by one at most, the longer
    ones first."""
    size, longer = divmod(layers, parts)
    starts = [i * size + min(i, longer) for i in range(parts + 1)]
    return [range(start, end) for start, end in itertools.pairwise(starts)]


def stages(facts: Mapping[str, Json]) -> dict[str, range]:
    """Names of what runs after the embedding, in that order, and the layers of each: "decoder_0" …,
    then "head"."""
    return stages_of(facts["layers"], facts["parts"])


def stages_of(layers: int, parts: int) -> dict[str, range]:
    """The same of a model with so many ``layers`` in ``parts``."""
    ranges = ranges_of(layers, parts)
    return {f"decoder_{i}": one for i, one in enumerate(ranges)} | {HEAD: range(0)}


def name_of(stage: str, length: str) -> str:
    """The file of ``stage`` for prompts or for single tokens."""
    return f"{stage}_{length}.onnx"


def data_of(stage: str) -> str:
    """The file with the weights of both graphs of ``stage``, or of the embedding."""
    return f"{stage}.data"


def facts_of(folder: Path) -> dict[str, Json]:
    """What ``static.json`` says: prompt_length, context_length, caches, layers, parts, ends, soc
    (or None)."""
    facts: dict[str, Json] = json.loads((folder / FACTS).read_text("utf-8"))
    return facts


def write_facts(folder: Path, facts: Mapping[str, Json]) -> None:
    """Write ``static.json``."""
    (folder / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", "utf-8")
