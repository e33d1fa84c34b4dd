"""A seeded grammar of little stories: the text that the embedded model learns, is calibrated on and
judged by.

``stories/grammar.txt`` holds the words, in two kinds of sections:

- ``@ kind home food`` heads records, one a line, fields separated by ``|``; a story picks some of
  each, the second pick's fields are called ``kind2``, ``home2``, and so on;
- ``= name`` heads a rule, one alternative a line; earlier lines are likelier, so that there is a
  skewed distribution to learn. ``question => answer`` lines belong to the story whose rule they are
  named after.

In an alternative, ``{x}`` is the story's word or the rule of that name, ``{X}`` and ``{XY}`` the
same with a capital or in capitals, ``{a x}`` with the fitting article, ``{this|that}`` a choice on
the spot.

Splits cannot overlap: the hash of a story's own text decides which split it belongs to, whatever is
asked about it, and no story is used twice.

    python -m phipipe.assets.stories FOLDER      # writes calibration.txt and evaluation.txt
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Literal, TypeVar

Split = Literal["train", "calibration", "evaluation"]

SEED = 1
FILE_BYTES: Mapping[Split, int] = {"calibration": 120_000, "evaluation": 160_000}
GRAMMAR = Path(__file__).with_name("stories") / "grammar.txt"
SEPARATOR = "<|endoftext|>\n"  # after each document, as Phi-3's chat template ends a finished chat

# of 256 values of a hash's first byte
_SHARES: Mapping[Split, int] = {"evaluation": 20, "calibration": 20}
_PICKS = {
    "kind": 3,
    "name": 2,
    "trait": 2,
    "place": 1,
    "thing": 2,
    "item": 1,
    "sky": 2,
    "opposite": 1,
    "word": 1,
}
_LISTS = ("weekday", "month", "season")  # rules whose choice holds for the whole story
_SKEW = 0.25  # the i-th alternative has the weight i ** -_SKEW
_UNITS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_SMALL = _UNITS + _TEENS
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

Record = Mapping[str, str]
_T = TypeVar("_T")


def documents(split: Split) -> Iterator[str]:
    """Endless distinct documents of a split, always in the same order: stories, and chats about
    stories."""
    seen: set[str] = set()
    for number in count():
        story, document = _document(random.Random(f"{SEED}:{number}"))
        digest = hashlib.sha256(story.encode()).hexdigest()
        if split_of(story) == split and digest not in seen:
            seen.add(digest)
            yield document


def small_talk() -> Iterator[str]:
    """Endless short chats without a story, for training only: sums, facts, definitions (they
    repeat)."""
    for number in count():
        rng = random.Random(f"{SEED}:talk:{number}")
        words = _world(rng)
        turns = [_question("talk", words, rng) for _ in range(rng.choice((1, 1, 2)))]
        yield _chat(turns, words, rng)


def split_of(story: str) -> Split:
    """The split a story belongs to: its own hash decides."""
    first = hashlib.sha256(story.encode()).digest()[0]
    for split, share in _SHARES.items():
        if first < share:
            return split
        first -= share
    return "train"


def file_text(split: Split) -> str:
    """The text of ``stories/<split>.txt``."""
    parts: list[str] = []
    size = 0
    for document in documents(split):
        parts.append(document + SEPARATOR)
        size += len(parts[-1].encode())
        if size >= FILE_BYTES[split]:
            return "".join(parts)
    raise AssertionError("documents never end")


def _document(rng: random.Random) -> tuple[str, str]:
    """A story, and the document made of it."""
    words = _world(rng)
    if rng.random() < 0.2:
        story = _expand("{short}", words, rng)
        return story, _chat([(_expand("{short_ask}", words, rng), story)], words, rng)
    plot = _pick(_grammar()[1]["story"], rng).strip("{}")
    story = _expand(f"{{{plot}}}", words, rng)
    turns = [_question(f"{plot}_qa", words, rng) for _ in range(rng.choice((1, 2, 2, 3)))]
    turns = list(dict(turns).items())
    form = rng.random()
    if form < 0.3:
        (question, answer), *more = turns
        first = _expand("{read}", words | {"text": story, "question": question}, rng)
        return story, _chat([(first, answer), *more], words, rng)
    if form < 0.5:
        asked = "".join(f"\nQuestion: {q}\nAnswer: {a}" for q, a in turns)
        return story, f"{story}\n{asked}\n"
    title = _expand("{Name} and the {thing}", words, rng)
    return story, f"# {title}\n\n{story}\n" if form < 0.7 else f"{story}\n"


def _question(rule: str, words: Record, rng: random.Random) -> tuple[str, str]:
    question, answer = _expand(f"{{{rule}}}", words, rng).split(" => ")
    return question, answer


def _chat(turns: Sequence[tuple[str, str]], words: Record, rng: random.Random) -> str:
    """Turns as Phi-3's chat template renders them."""
    system = f"<|system|>\n{_expand('{system}', words, rng)}<|end|>\n" if rng.random() < 0.2 else ""
    return system + "".join(f"<|user|>\n{q}<|end|>\n<|assistant|>\n{a}<|end|>\n" for q, a in turns)


def _world(rng: random.Random) -> dict[str, str]:
    """Everything that stays true throughout one story: who, where, what, when, how many."""
    records, rules = _grammar()
    words: dict[str, str] = {name: _pick(rules[name], rng) for name in _LISTS}
    for name, number in _PICKS.items():
        picked: list[Record] = []
        while len(picked) < number:
            record = _pick(records[name], rng)
            if record not in picked:
                picked.append(record)
        for i, record in enumerate(picked, 1):
            words |= {key if i == 1 else f"{key}{i}": value for key, value in record.items()}
    words |= {
        "day_": words["day"][0].lower() + words["day"][1:],
        "feature_": words["feature"].removeprefix("a "),
    }
    return words | _numbers(rng)


def _numbers(rng: random.Random) -> dict[str, str]:
    n, m = rng.randint(2, 12), rng.randint(2, 9)
    k = rng.randint(2, min(6, n + m - 2))
    hour, later, minute = (
        rng.randint(1, 8),
        rng.randint(1, 4),
        rng.choice((0, 0, 0, 15, 30, 45, rng.randrange(60))),
    )
    dn, dm = rng.randint(1, 20), rng.randint(1, 10)
    values = {
        "n": n,
        "m": m,
        "k": k,
        "sum": n + m,
        "left": n + m - k,
        "product": n * m,
        "double": 2 * n,
        "h": hour,
    }
    words = {name: number_word(value) for name, value in values.items()}
    return words | {
        "counting": ", ".join(number_word(i) for i in range(1, n + m + 1)),
        "h2": number_word(hour + later),
        "clock": f"{hour}:{minute:02}" if minute or rng.random() < 0.3 else f"{words['h']} o'clock",
        "clock2": f"{hour + later}:{minute:02}",
        "date": str(n + 2 * m),
        "dn": str(dn),
        "dm": str(dm),
        "dsum": str(dn + dm),
    }


def number_word(value: int) -> str:
    """English for 0 to 199."""
    if value < 20:
        return _SMALL[value]
    if value >= 100:
        return "one hundred" + (f" and {number_word(value - 100)}" if value > 100 else "")
    return _TENS[value // 10] + (f"-{_SMALL[value % 10]}" if value % 10 else "")


_INNERMOST = re.compile(r"\{([^{}]*)\}")


def _expand(text: str, words: Record, rng: random.Random) -> str:
    """Replace slots, innermost first, until none is left."""
    while match := _INNERMOST.search(text):
        text = text[: match.start()] + _slot(match[1], words, rng) + text[match.end() :]
    return text.replace("\n ", "\n")


def _slot(slot: str, words: Record, rng: random.Random) -> str:
    if "|" in slot:
        return _pick(slot.split("|"), rng)
    article, _, name = slot.rpartition(" ")
    key = name.lower()
    value = words[key] if key in words else _expand(_pick(_grammar()[1][key], rng), words, rng)
    if article:
        value = f"{article}n {value}" if value[0].lower() in "aeiou" else f"{article} {value}"
    if name.isupper() and len(key.rstrip("23_")) > 1:
        return value.upper()
    return value[0].upper() + value[1:] if name[0].isupper() else value


def _pick(choices: Sequence[_T], rng: random.Random) -> _T:
    return rng.choices(choices, [i**-_SKEW for i in range(1, len(choices) + 1)])[0]


@cache
def _grammar() -> tuple[dict[str, list[Record]], dict[str, list[str]]]:
    """Records by their first field's name, alternatives by their rule's name."""
    records: dict[str, list[Record]] = {}
    rules: dict[str, list[str]] = {}
    fields: list[str] = []
    name = ""
    for line in GRAMMAR.read_text("utf-8").splitlines():
        if line.startswith("@ "):
            fields = line[2:].split()
            name = fields[0]
            records[name] = []
        elif line.startswith("= "):
            fields, name = [], line[2:].strip()
            rules[name] = []
        elif fields and line and not line.startswith("#"):
            records[name].append(dict(zip(fields, line.split(" | "), strict=True)))
        elif line and not line.startswith("# "):
            rules[name].append(line.replace("\\n", "\n"))
    return records, rules


def main() -> None:
    """Write the text files into the folder named on the command line."""
    folder = Path(sys.argv[1])
    for split in FILE_BYTES:
        (folder / f"{split}.txt").write_text(file_text(split), "utf-8")


if __name__ == "__main__":
    main()
