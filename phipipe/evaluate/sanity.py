"""What a table of averages hides: answers that never end, loops, a tokenizer that differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phipipe import progress
from phipipe.backends.base import AnyBackend, Runtime, Tokenizer
from phipipe.evaluate.original import Original
from phipipe.evaluate.reports import Answer, Baseline, Chat, Misread, Reading, Sanity
from phipipe.models import tokenizer as transformers_tokenizer
from phipipe.models import tokenizer_difference, tokenizer_reading, tokenizer_texts

# Asked of every model, greedily; rendered with the source's own chat template.
PROMPTS = ("Tell me a short story about a fox.", "Where is the key?", "What is 2 plus 3?")
CONTINUATION_TOKENS = 96
MARKS = "marks"  # the kind of a difference that is told, and stops no build
RANK = {"text": 0, "chat": 1, MARKS: 2}  # of kinds of texts: the first that differs is named
MOST_IDS = 64  # that are kept of a text which is read otherwise

# A packaged tokenizer must give the source tokenizer's ids on this: accents, scripts, code, spaces,
# digits.
PARITY_TEXT = """Once, in Köln, a fox said: "It's 7:45 – we're late!"  Two  spaces.
Καλημέρα, добрый день, こんにちは, 你好, مرحبا, नमस्ते 🙂👩‍🚀 e\u0301 ﬁ
def area(r: float) -> float:\n\treturn 3.14159 * r**2  # m²
{"key": [1, 22, 333], "ok": true}  <b>&amp;</b> 1000000 0.001 1e-9
"""


def expected(
    source: Path, model: Original, *, asked: bool = True
) -> tuple[list[int], list[Chat], list[Reading]]:
    """What a runtime and its packaged tokenizer must reproduce: the ids of ``PARITY_TEXT``,
    rendered chats with their greedy answers, unless no one is ``asked`` for, and the ids of many
    short texts."""
    tokenizer = transformers_tokenizer.of_source(source)
    prompts = PROMPTS if tokenizer.facts["chat_template"] else ()
    rendered = [tokenizer.render([{"role": "user", "content": prompt}]) for prompt in prompts]
    ids = [tokenizer.encode(text) for text in rendered]
    answers = model.generate(ids, CONTINUATION_TOKENS if asked else 0)
    progress.generated(sum(map(len, answers)))
    chats = [
        Chat(prompt=prompt, rendered=text, ids=read, answer=answer, text=tokenizer.decode(answer))
        for prompt, text, read, answer in zip(prompts, rendered, ids, answers, strict=True)
    ]
    texts = tokenizer_reading.written(source, tokenizer)
    plain = [*tokenizer_texts.PLAIN, *PARITY_TEXT.splitlines(keepends=True)]
    readings = [
        Reading(kind=kind, text=text, ids=tokenizer.encode(text))
        for kind, every in (("text", plain), ("chat", texts))
        for text in every
    ]
    return tokenizer.encode(PARITY_TEXT), chats, readings


def check(
    backend: AnyBackend, runtime: Runtime, artifact: Path, baseline: Baseline
) -> tuple[Sanity, list[Answer]]:
    """How ``artifact``, opened as ``runtime``, reads texts and answers, beside the original; it is
    asked what the original was."""
    tokenizer, chats = backend.tokenizer(artifact), [one for one in baseline.chats if one.answer]
    answers = [list(runtime.generate(chat.ids, CONTINUATION_TOKENS)) for chat in chats]
    progress.generated(sum(map(len, answers)))
    same = [common_prefix(answer, chat.answer) for answer, chat in zip(answers, chats, strict=True)]
    longest = [len(chat.answer) for chat in chats]
    rendered = [
        tokenizer.render([{"role": "user", "content": chat.prompt}]) == chat.rendered
        for chat in baseline.chats
    ]
    misread = difference(tokenizer, baseline)
    sanity = Sanity(
        tokenizer_equal=misread is None or misread.kind == MARKS,
        tokenizer_difference=misread,
        chat_template_equal=all(rendered),
        greedy_agreement=sum(same) / sum(longest) if longest else None,
        answers_ended=[len(answer) < CONTINUATION_TOKENS for answer in answers],
        repetition=max((repetition(answer) for answer in answers), default=0.0),
    )
    return sanity, [
        Answer(prompt=chat.prompt, text=tokenizer.decode(answer))
        for answer, chat in zip(answers, chats, strict=True)
    ]


def difference(tokenizer: Tokenizer, baseline: Baseline) -> Misread | None:
    """The shortest plain text that ``tokenizer`` reads otherwise than the original's did; where
    there is none, the shortest text of a chat; else the shortest with combining characters."""
    long = [Reading(kind="text", text=PARITY_TEXT, ids=baseline.parity_ids)]
    long += [Reading(kind="chat", text=chat.rendered, ids=chat.ids) for chat in baseline.chats]
    ranked = [(_kind(reading), reading) for reading in [*baseline.readings, *long]]
    for kind, reading in sorted(ranked, key=lambda one: (RANK[one[0]], len(one[1].text))):
        got = list(tokenizer.encode(reading.text))
        if got != reading.ids:
            return Misread(
                kind=kind,
                text=tokenizer_difference.visible(reading.text),
                expected=reading.ids[:MOST_IDS],
                got=got[:MOST_IDS],
            )
    return None


def _kind(reading: Reading) -> str:
    if reading.kind == "text" and tokenizer_texts.has_marks(reading.text):
        return MARKS
    return "text" if reading.kind == "text" else "chat"


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids ``a`` and ``b`` share from their start."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that occurred before in the same answer: 0 is none, near 1 is a loop."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
