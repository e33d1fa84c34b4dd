"""What an Ollama ``Modelfile`` asks for: it may name no other model, adapter or address than the
file beside it.

Read as Ollama reads it: characters that do not print do not count, a comment ends with its line,
and a text between quotes ends with the first line that ends in such quotes. Who reads it otherwise
takes instructions for texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_INSTRUCTIONS = frozenset({"FROM", "TEMPLATE", "PARAMETER", "SYSTEM", "LICENSE", "MESSAGE"})
# Ollama takes `PARAMETER adapter PATH` for an adapter: any other name could be an instruction.
_PARAMETERS = frozenset(
    {
        "min_p", "num_ctx", "num_keep", "num_predict", "repeat_last_n", "repeat_penalty", "seed",
        "stop", "temperature", "top_k", "top_p", "typical_p",
    }
)  # fmt: skip
_LINE = re.compile(r"[ \t]*([A-Za-z]+)[ \t]+(.*)")
_NAMED = re.compile(r"([A-Za-z0-9_]+)[ \t]+(.*)")


def problems(text: str) -> Iterator[str]:
    """Phrases, to follow the file's name, on what in ``text`` phipipe never writes."""
    lines = iter(re.split(r"[\r\n]", "".join(c for c in text if c in "\r\n\t" or c.isprintable())))
    for line in lines:
        if not line.strip() or line.lstrip(" \t").startswith("#"):
            continue
        instruction = _LINE.fullmatch(line)
        word, value = (instruction[1].upper(), instruction[2]) if instruction else ("", "")
        named = _NAMED.fullmatch(value) if word in ("PARAMETER", "MESSAGE") else None
        odd = word in ("PARAMETER", "MESSAGE") and (
            not named or (word == "PARAMETER" and named[1] not in _PARAMETERS)
        )
        if word not in _INSTRUCTIONS or odd:
            yield f"has a line that phipipe never writes (`{ascii(line[:60])[1:-1]}`)"
        elif word == "FROM" and value.strip(" \t") != "./model.gguf":
            yield f"takes another model (`{ascii(value[:60])[1:-1]}`)"
        if not _ends(named[2] if named else value, lines):
            yield "has a text without an end"


def _ends(value: str, lines: Iterator[str]) -> bool:
    """Step over the lines that go on with ``value``; False if it never ends."""
    value = value.strip(" \t")
    quote = next((mark for mark in ('"""', '"') if value.startswith(mark)), "")
    length, line = len(value), value
    while quote and not (length >= 2 * len(quote) and line.rstrip(" \t").endswith(quote)):
        following = next(lines, None)
        if following is None:
            return False
        line = following
        length += 1 + len(line.rstrip(" \t"))
    return True
