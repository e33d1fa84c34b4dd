"""Text for a terminal: what strangers wrote (names, configs, answers) can neither command it nor
deceive its reader."""

from __future__ import annotations

import json
import re

# Control characters but line feed and tab (C0, DEL, C1), separators that end a line for some
# programs, what changes the direction of the text around it, and halves of surrogate pairs (names
# that are not UTF-8).
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
# json escapes the others
_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
PLAIN = {
    "→": "->",
    "…": "...",
    "–": "-",
    "—": "-",
    "≤": "<=",
    "≥": ">=",
    "×": "x",
    "·": "-",
    "‑": "-",
    "”": '"',
}


def visible(text: str) -> str:
    """``text`` with escapes such as ``\\x1b`` in place of characters that act instead of being
    seen."""
    return _UNSEEN.sub(_escape, text)


def in_template(value: object) -> object:
    """``value`` as a template prints it (Jinja's ``finalize``): what is text is made visible, what
    is ours stays."""
    return visible(value) if type(value) is str else value


def one_line(text: str) -> str:
    """The same on one line: for a name, which has no business to begin another."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def json_text(value: object, *, indent: int | None = None, encoding: str | None = None) -> str:
    """``value`` as JSON that is safe to show, and that a stream with ``encoding`` can write."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    try:
        text.encode(encoding or "utf-8", "surrogatepass" if encoding is None else "strict")
    except (UnicodeEncodeError, LookupError):
        return json.dumps(value, indent=indent, default=str)
    return _IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def json_again(text: str) -> str:
    """JSON that is written already, with escapes where ``json_text`` has them."""
    return _IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: what a stream cannot write, in signs that every stream has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    failed = error.object[error.start : error.end]
    plain = (PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in failed)
    return "".join(plain), error.end


def _escape(match: re.Match[str]) -> str:
    number = ord(match.group())
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
