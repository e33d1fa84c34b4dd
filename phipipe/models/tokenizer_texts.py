"""Texts on which tokenizers are compared: short ones, each with something that they cut
differently, so that the shortest that two read otherwise names the difference."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

PLAIN: Sequence[str] = (
    *("Hello world", " a", "a b", "a  b", "  a", "a   b", "a    b", "a        b", "a ", "a  "),
    *(
        "\n",
        "a\nb",
        "a\n\nb",
        "a\n\n\nb",
        "a \nb",
        "a\n b",
        "\na",
        "a\r\nb",
        "\ta",
        "a\tb",
        "\t\ta",
    ),
    *(
        "if a:\n    return 1",
        "  if a:\n        return b[0]\n",
        "def f(x: int) -> int:\n\treturn x**2",
    ),
    *(
        "for (int i = 0; i < 10; ++i) {\n  s += a[i]; // sum\n}",
        "<b>&amp;</b>",
        "https://a.b/c?d=1&e",
    ),
    *("a  1", "  1", "\n\n1", "a\n  2. b"),
    *("1", "12", "123", "1234", "1234567890", "3.14159", "0x1F", "1,000,000", "1e-9", "7:45"),
    *("it's", "IT'S we'll", "don't", "CamelCaseName", "snake_case_name", "ALLCAPS", "a-b", "a...b"),
    *("Köln", "naïve café", "e\u0301", "ﬁ", "ß", "İ", "Ångström", "½ m²", "a\u00a0b", "a\u200bb"),
    *(
        "Καλημέρα",
        "добрый день",
        "你好",
        "你好,世界",
        "こんにちは世界",
        "안녕하세요",
        "مرحبا",
        "नमस्ते",
        "ไทย",
        "สวัสดี",
        "שָׁלוֹם",
    ),
    *(
        "🙂",
        "👩‍🚀",
        "a🙂b",
        "🇩🇪",
        "❤️",
        "❤️<b>",
        "“a” – ‘b’…",
        "–",
        "$5 €3",
        "#a @b",
        "\\n",
        "[1, 22]",
        '{"k": true}',
    ),
    *("[INST]", "<|x|>", "</think>"),
)
# Runs of digits, which some cut into threes and others not at all: small vocabularies join few of
# them, and show it by some run alone.
NUMBERS: Sequence[str] = (
    *("00", "0000", "00000", "0000000", "1111", "1010", "10000", "1000000", "20000.0001"),
    "12345678901234567890",
)
# What nobody writes: tokens that stand for no text, and how vocabularies write a space.
ODD: Sequence[str] = ("<s>", "</s>", "<unk>", "<pad>", "▁a", "a▁b", "Ġa")
# What follows and precedes a special token, where runtimes strip and prefix differently.
AROUND: Sequence[str] = ("{}", "{}a", "{} a", "{}\na", "{}\n", "a{}", "a {}", "{}{}", "{}  a")
MOST_SPECIAL = 24  # of hundreds that are placeholders
CHATS: Sequence[Sequence[Mapping[str, str]]] = (
    ({"role": "user", "content": "Hi"},),
    ({"role": "user", "content": "  if a:\n    return 1\n"},),
    (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello, 你好 🙂!"},
        {"role": "user", "content": "What is 2 plus 3?"},
    ),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}),
)


def has_marks(text: str) -> bool:
    """Whether ``text`` has characters that combine with the one before: accents that are not
    composed, vowel signs of Hindi and Thai, points of Hebrew, an emoji's style. Some runtimes have
    no place for these."""
    composed = unicodedata.is_normalized("NFC", text)
    return not composed or any(unicodedata.category(letter).startswith("M") for letter in text)


def around(specials: Sequence[str]) -> list[str]:
    """Texts with each of the first and last of ``specials``, tokens that stand for no text."""
    half = MOST_SPECIAL // 2
    some = specials if len(specials) <= MOST_SPECIAL else (*specials[:half], *specials[-half:])
    return [pattern.format(token, token) for token in some for pattern in AROUND]
