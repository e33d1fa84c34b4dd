"""The text of an answer as its tokens come, in complete characters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from phipipe.errors import StepFailed
from phipipe.sandbox.limited import Raised

INCOMPLETE = "\ufffd"  # what tokenizers give for the first bytes of a character
# Decoded again with every piece: what a token looks like depends on those before it.
KEEP_TOKENS = 8


def pieces(decode: Callable[[Sequence[int]], str], ids: Iterable[int]) -> Iterator[str]:
    """The text of ``ids`` as it grows, in complete characters only.

    Together the pieces are ``decode(ids)``. What a token reads as depends on its neighbours
    (spaces, characters of several tokens), so each piece is what one more token adds to the text of
    the last few.
    """
    held: list[int] = []
    shown = ""  # as much of the text of ``held`` as was yielded
    for token in ids:
        held.append(token)
        text = decoded(decode, held)
        if text is None or text.endswith(INCOMPLETE):
            continue
        if len(text) > len(shown):
            yield text[len(shown) :]
        shown = text
        if len(held) > 2 * KEEP_TOKENS:
            rest = decoded(decode, held[-KEEP_TOKENS:])
            if rest and text.endswith(rest):
                held, shown = held[-KEEP_TOKENS:], rest
    text = decoded(decode, held)
    if text is not None and len(text) > len(shown):
        yield text[len(shown) :]


def decoded(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> str | None:
    """Text of ``ids``; None where a runtime cannot show a character's first bytes at all."""
    try:
        return decode(ids)
    except UnicodeDecodeError:
        return None
    except Raised as error:
        if error.kind == "UnicodeDecodeError":
            return None
        raise StepFailed(f"the package's tokenizer cannot decode an answer: {error}") from None


def ended(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> bool:
    """Whether the model itself ended the answer ``ids``: its end token shows nothing. (So does the
    second byte of a character of three.)"""
    text = decoded(decode, ids) if ids else ""
    if not text:
        return text is not None
    return not text.endswith(INCOMPLETE) and text == decoded(decode, ids[:-1])
