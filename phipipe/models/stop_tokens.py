"""Tokens that end an answer: by both configs, by the tokenizer, and by what the chat template
writes after an answer. Tools read one of these places each, so all must say the same."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from phipipe.files import json_files
from phipipe.models import tokenizer_files
from phipipe.sandbox import chat_templates, template_files
from phipipe.sandbox.limited import Raised
from phipipe.steps import Json

GENERATION, SETTINGS, FILE = "generation_config.json", "tokenizer_config.json", "tokenizer.json"
_ROLES = ("user", "assistant", "user")
_DEFAULT = "default"  # the chat template that is used where none is named


def known(folder: Path, config: Mapping[str, Json]) -> list[int]:
    """Ids that runtimes end a text with: of ``generation_config.json`` in ``folder`` where it names
    any, else of its ``config``."""
    ids = _optional(folder / GENERATION).get("eos_token_id")
    return tokenizer_files.end_ids(config.get("eos_token_id") if ids is None else ids)


def wanted(folder: Path, config: Mapping[str, Json]) -> list[int]:
    """Ids of all tokens that end an answer of the checkpoint in ``folder``, those of ``known``
    first. Those that only some places name must be tokens that the model has.

    Raises:
        SourceError: a file is damaged, or the chat template takes more than it may.
    """
    ids = _ids(folder)
    settings = tokenizer_files.optional_settings(folder / SETTINGS)
    more = tokenizer_files.end_ids(config.get("eos_token_id"))
    more += [ids[token] for token in _ends(folder, settings, ids) if token in ids]
    there = [number for number in more if number < int(config["vocab_size"])]
    return list(dict.fromkeys([*known(folder, config), *there]))


def _ends(folder: Path, settings: Mapping[str, Json], ids: Mapping[str, int]) -> list[str]:
    """Texts of the tokens that tokenizer and chat template end an answer with."""
    named = {name: tokenizer_files.text_of(settings, name) for name in ("bos_token", "eos_token")}
    specials = {name: text for name, text in named.items() if text}
    ends = [specials["eos_token"]] if "eos_token" in specials else []
    template = template_files.read(folder).get(_DEFAULT)
    end = after_answer(template, specials, list(ids)) if template else None
    return [*ends, *([end] if end else [])]


def after_answer(template: str, specials: Mapping[str, str], tokens: Sequence[str]) -> str | None:
    """Which of ``tokens`` the chat ``template`` writes right after an answer; None if none, or if
    it refuses a chat.

    What begins the next turn ends no answer: it stands alone there, and before the first turn too.

    Raises:
        SourceError: the template takes more than it may.
    """
    renderer = chat_templates.Renderer(template, whose="checkpoint", specials=specials)
    chat = [{"role": role, "content": f"⟦{i}⟧"} for i, role in enumerate(_ROLES)]
    text = ""
    with contextlib.closing(renderer), contextlib.suppress(Raised):
        text = renderer.render(chat)
    head, _, rest = text.partition("⟦0⟧")
    between, last, _ = rest.partition("⟦1⟧")[2].partition("⟦2⟧")
    if not last or not tokens:
        return None
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True) if token)
    found = list(re.finditer(pattern, between))
    if not found or between[: found[0].start()].strip():
        return None
    end = found[0].group()
    return end if len(found) > 1 or end not in head else None


def _ids(folder: Path) -> dict[str, int]:
    """Special tokens, by ``tokenizer.json``, else by ``tokenizer_config.json``, and their ids."""
    if (folder / FILE).is_file():
        listed = json_files.read_object(folder / FILE).get("added_tokens") or []
        pairs = [(entry, entry.get("id")) for entry in listed]
    else:
        settings = tokenizer_files.optional_settings(folder / SETTINGS)
        decoder = settings.get("added_tokens_decoder") or {}
        pairs = [(entry, int(number)) for number, entry in decoder.items()]
    return {entry["content"]: number for entry, number in pairs if entry.get("special")}


def _optional(path: Path) -> dict[str, Json]:
    return json_files.read_object(path) if path.is_file() else {}
