"""The chat templates that lie in a folder, as text."""

from __future__ import annotations

from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files

# characters; the longest of the field have 30,000, and parsers take time by the square
MAX_LENGTH = 2**16
NAMED = "additional_chat_templates"


def read(folder: Path) -> dict[str, str]:
    """Every chat template in ``folder`` by its name; the one that is used where none is named is
    "default".

    Raises:
        SourceError: a file that should hold one is damaged or too large.
    """
    templates: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (folder / name).is_file():
            templates |= _inside(json_files.read_object(folder / name).get("chat_template"))
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = _text(folder / "chat_template.jinja")
    templates |= {path.stem: _text(path) for path in sorted((folder / NAMED).glob("*.jinja"))}
    for name, text in templates.items():
        if len(text) > MAX_LENGTH:
            raise SourceError(
                f"the chat template `{name}` has {len(text)} characters, at most {MAX_LENGTH} "
                f"make sense"
            )
    return templates


def _inside(value: object) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        return {str(name): text for name, text in value.items() if isinstance(text, str)}
    entries = value if isinstance(value, list) else []
    named = [e for e in entries if isinstance(e, dict) and isinstance(e.get("template"), str)]
    return {str(entry.get("name")): entry["template"] for entry in named}


def _text(path: Path) -> str:
    try:
        return json_files.read_bytes(path, MAX_LENGTH).decode("utf-8")
    except UnicodeDecodeError:
        raise SourceError(f"`{path}` is not UTF-8") from None
