"""What an emulated artifact computed of the first tokens of a text, in files: between the step that
emulates and the one that checks it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phipipe.backends.base import Floats

LOGITS, PIPELINE = "logits.npy", "pipeline.json"


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """``logits`` float32 [tokens, vocabulary]: of a prompt that was read at once, and of the tokens
    after it, read one by one; ``pipeline`` says in words what ran the artifact."""

    logits: Floats
    pipeline: str


def write(folder: Path, decoded: Decoded) -> None:
    """Leave ``decoded`` in ``folder``."""
    import numpy as np

    np.save(folder / LOGITS, decoded.logits, allow_pickle=False)
    (folder / PIPELINE).write_text(json.dumps(decoded.pipeline) + "\n", "utf-8")


def read(folder: Path) -> Decoded:
    """What ``write`` left in ``folder``."""
    import numpy as np

    logits = np.load(folder / LOGITS, allow_pickle=False)
    return Decoded(logits=logits, pipeline=json.loads((folder / PIPELINE).read_text("utf-8")))
