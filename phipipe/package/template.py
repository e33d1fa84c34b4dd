"""The chat template of a package: the source's own, or nothing ships."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from phipipe.errors import StepFailed
from phipipe.evaluate.reports import Sanity
from phipipe.steps import Inputs, Json


def shipped(inputs: Inputs, sanity: Sanity) -> dict[str, Json] | None:
    """The chat template's hash; a package whose template is not the source's is not made.

    A changed template changes what the model is told, unseen. Formats that keep the template inside
    a binary file are compared by what they render, in ``evaluate``.
    """
    wanted, kept = template_of(inputs["source"]), template_of(inputs["artifact"])
    if wanted is None and kept is None:
        return None
    if kept is not None and kept != wanted:
        raise StepFailed(
            "the artifact's chat template is not the source's"
            + ("" if wanted else ", which has none"),
            hint="the converter changed it; do not ship this",
        )
    if kept is None and not sanity.chat_template_equal:
        raise StepFailed("the artifact lost the source's chat template")
    assert wanted is not None
    compared = "text" if kept is not None else "rendering"
    return {
        "sha256": hashlib.sha256(wanted.encode()).hexdigest(),
        "equals_source": True,
        "compared": compared,
    }


def template_of(folder: Path) -> str | None:
    """The chat template in ``folder``, where transformers would look for it; named ones as
    canonical JSON."""
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        settings = (
            json.loads((folder / name).read_text("utf-8")) if (folder / name).is_file() else {}
        )
        template = settings.get("chat_template") if isinstance(settings, dict) else None
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            return (
                str(named["default"])
                if set(named) == {"default"}
                else json.dumps(named, sort_keys=True)
            )
        if template:
            return str(template)
    return None
