"""Stop strings and marks in a text that comes in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phipipe.serving.held import Stops, first_of, held_back

TEXT = st.text("abc\n", max_size=30)
WORDS = st.lists(st.text("abc\n", min_size=1, max_size=4), max_size=4)


@given(st.lists(TEXT, max_size=8), WORDS)
def test_a_text_ends_before_the_first_stop_however_it_is_cut(
    pieces: list[str], words: list[str]
) -> None:
    stops, shown = Stops(words), list[str]()
    for piece in pieces:
        shown.append(stops.feed(piece))
        if stops.found:
            break
    said, whole = "".join([*shown, stops.rest()]), "".join(pieces)
    at = min((whole.find(word) for word in words if word in whole), default=-1)
    assert stops.found == (at >= 0)
    # what came first may have been seen before a longer word that begins earlier was whole
    assert said == whole if at < 0 else whole.startswith(said)
    assert not any(word in said for word in words)


@given(TEXT, WORDS)
def test_what_is_shown_at_once_begins_no_word(text: str, words: list[str]) -> None:
    stops = Stops(words)
    shown = stops.feed(text)
    held = text[len(shown) :]
    if not stops.found:
        assert held_back(text, words) == len(held)
        assert not held or any(word.startswith(held) and word != held for word in words)


def test_nothing_is_held_without_words() -> None:
    stops = Stops(())
    assert stops.feed("anything") == "anything"
    assert stops.rest() == ""
    assert first_of("anything", ()) == -1


def test_what_only_looked_like_a_stop_is_shown_at_the_end() -> None:
    stops = Stops(["END!"])
    assert [stops.feed("the EN"), stops.feed("D"), stops.rest()] == ["the ", "", "END"]
