"""What a package says of weights that were learned for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phipipe.algorithms import learned
from phipipe.files import json_files
from phipipe.steps import Json, Params


def told(folder: Path | None) -> dict[str, Json] | None:
    """How the weights in ``folder`` were learned, and their digest; None where there are none."""
    if folder is None:
        return None
    index = json_files.read_object(folder / learned.INDEX)
    about: dict[str, Json] = {key: index[key] for key in ("learn", "distil") if key in index}
    return {**about, "digest": index["weights_digest"]}


def scheme(params: Params, weights: Mapping[str, Json] | None) -> str:
    """How the weights are stored: ``params["scheme"]``, but ``params["unchanged"]`` where trained
    scales were no better than those from before, which ship then."""
    trained = weights.get("distil") if weights else None
    kept = trained is None or trained["after"] < trained["before"]
    words: str = params["scheme"] if kept else params["unchanged"]
    return words
