"""Greedy answers of a ``Layerwise`` model in few passes through its layers.

A pass widens every layer, whether one token goes through or fifty. So the model drafts some tokens
in the 16 bits that its files hold, which is cheap, and one exact pass checks them all: what it
would have chosen itself is kept, up to the first token that differs and the exact one in its place
(Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", of which this
is the greedy case). The answers are those of exact passes, whatever the draft says; a poor draft
costs time alone.

All texts go through a layer as one batch. The shorter ones begin with padding, and what a draft got
wrong stays in the caches: both are masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from phipipe import progress
from phipipe.models import compute
from phipipe.models.layerwise import Layerwise, Pass

FIRST_DRAFT = 16  # tokens; later drafts are as long as the earlier ones were right
LONGEST_DRAFT = 40  # in an exact pass of one text, so many more rows take as long as the first
SHORTEST_DRAFT = 4
# A draft of which most is wrong saves nothing; this many tokens tell.
JUDGED = 48


@dataclass
class _Side:
    """What one of the two has seen of a batch: its ``cache``, and the ``mask`` int64 [texts,
    tokens] of what counts in it."""

    mask: torch.Tensor
    cache: Any = None

    def enter(self, model: Layerwise, hidden: torch.Tensor, new: torch.Tensor) -> Pass:
        """``hidden`` [texts, tokens, hidden size] on its way after what was seen; ``new``: the mask
        of it."""
        self.mask = torch.cat([self.mask, new], 1)
        places = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        one = model.enter_cached(hidden, self.cache, attention_mask=self.mask, position_ids=places)
        self.cache = one.cache
        return one

    def keep(self, texts: Sequence[int]) -> None:
        """Forget all other texts."""
        chosen = torch.tensor(texts, device=self.mask.device)
        self.mask = self.mask[chosen]
        self.cache.batch_select_indices(chosen)


@dataclass
class _Record:
    """How many drafted tokens were judged, and how many of them were wrong."""

    judged: int = 0
    wrong: int = 0

    def length(self) -> int:
        """How many tokens to draft: about as many as are right before one is wrong."""
        if not self.judged:
            return FIRST_DRAFT
        if self.judged >= JUDGED and 2 * self.wrong > self.judged:
            return 0
        return round(min(max(self.judged / (self.wrong + 1), SHORTEST_DRAFT), LONGEST_DRAFT))


def answer(
    model: Layerwise, prompts: Sequence[Sequence[int] | torch.Tensor], limit: int
) -> list[list[int]]:
    """To each prompt (ids, or vectors as of ``Layerwise.embed``) at most ``limit`` token ids,
    chosen greedily; an end-of-text token is the last."""
    if not prompts or not limit:
        return [[] for _ in prompts]
    with torch.inference_mode():
        texts = [model.seen(prompt) for prompt in prompts]
        if _can_draft(model, max(map(len, texts)) + limit + LONGEST_DRAFT):
            model.stay()
            return _Drafted(model, texts, limit).all()
        return _plain(model, texts, limit)


def _can_draft(model: Layerwise, tokens: int) -> bool:
    """Whether drafts for texts of so many tokens are cheaper than exact passes, and nothing in the
    batch changes what a text is."""
    weights = [tensor for layer in model.layers for tensor in layer.parameters()]
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    # What does not stay in memory is read anew for each token.
    stay = weight_bytes < compute.free_bytes(model.unit)
    return model.short is not None and stay and tokens < min(_turned(model), _seen_again(model))


def _turned(model: Layerwise) -> float:
    """From how many tokens on the longest text of a batch decides how all tokens are rotated."""
    rotary = model.config.rope_parameters or {}
    parts = [rotary, *(part for part in rotary.values() if isinstance(part, dict))]
    longest = model.config.max_position_embeddings
    return min(
        (
            part.get("original_max_position_embeddings") or longest
            for part in parts
            if part.get("rope_type") in ("longrope", "dynamic")
        ),
        default=math.inf,
    )


def _seen_again(model: Layerwise) -> float:
    """How many of a cache's tokens every later one sees, masked ones counted."""
    ends = [math.inf]
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            ends.append(layer.sliding_window)
        elif type(layer) is not DynamicLayer:
            ends.append(0)
    return min(ends)


def _plain(model: Layerwise, texts: Sequence[torch.Tensor], limit: int) -> list[list[int]]:
    """The answers to ``texts``, each by itself, one token of each in an exact pass."""
    pending, caches = list(texts), [None] * len(texts)
    answers: list[list[int]] = [[] for _ in texts]
    going = list(range(len(texts)))
    for step in range(limit):
        passes = [model.enter_cached(pending[i][None], caches[i]) for i in going]
        model.advance(passes)
        for i, one in zip(going, passes, strict=True):
            caches[i] = one.cache
            answers[i].append(int(model.predictions(one)[0, -1].argmax()))
            pending[i] = model.embed(answers[i][-1:])
        going = [i for i in going if answers[i][-1] not in model.ends]
        progress.report(step + 1, limit, "tokens")
        if not going:
            break
    return answers


class _Drafted:
    """Answers by drafts, on their way, to ``texts``, float32 [tokens, hidden size] each."""

    def __init__(self, model: Layerwise, texts: Sequence[torch.Tensor], limit: int) -> None:
        self._model, self._limit = model, limit
        self._ids: list[list[int]] = [[] for _ in texts]
        self._going = list(range(len(texts)))  # which text is in each row of the batch
        longest = max(map(len, texts))
        self._record: _Record | None = _Record()
        self._end = _seen_again(model)
        lacking = [longest - len(text) for text in texts]
        self._next = torch.stack(
            [pad(text, (0, 0, n, 0)) for text, n in zip(texts, lacking, strict=True)]
        )
        self._new = self._ids_of([[0] * n + [1] * (longest - n) for n in lacking])
        self._exact, self._short = (_Side(self._new[:, :0]) for _ in range(2))
        self._lag: tuple[torch.Tensor, torch.Tensor] | None = None

    def all(self) -> list[list[int]]:
        """The answers, when they are all at their ends."""
        while self._going:
            guesses = self._guessed()
            taken = self._taken(guesses)
            self._follow(taken, guesses)
            progress.report(max(map(len, self._ids)), self._limit, "tokens")
        return self._ids

    def _guessed(self) -> torch.Tensor:
        """The next ids of each text by the weights as they are stored, int64 [texts, some]; often
        none."""
        lengths = [len(self._ids[i]) for i in self._going]
        room = self._end - self._exact.mask.shape[1] - (self._limit - min(lengths)) - 1
        room = min(room, self._limit - min(lengths) - 1)
        count = int(max(min(self._record.length(), room), 0)) if self._record else 0
        guesses = self._ids_of([[0] * count for _ in self._going])
        if not count:
            self._record = self._lag = None  # from here on, no draft follows what is written
        hidden, new = self._next, self._new
        if self._lag is not None:
            hidden, new = (
                torch.cat(pair, 1) for pair in zip(self._lag, (hidden, new), strict=True)
            )
        for i in range(count):
            one = self._short.enter(self._model, hidden.to(self._model.short), new)
            self._model.advance_short(one)
            guesses[:, i] = self._chosen(one, 1)[:, 0]
            hidden, new = self._embedded(guesses[:, i : i + 1]), torch.ones_like(guesses[:, :1])
        return guesses

    def _taken(self, guesses: torch.Tensor) -> list[int]:
        """Add to each answer what the exact model chooses, as far as its guess leads; how many
        guesses were right, for each."""
        count = guesses.shape[1]
        hidden, new = self._next, self._new
        if count:
            hidden = torch.cat([hidden, self._embedded(guesses)], 1)
            new = pad(new, (0, count), value=1)
        one = self._exact.enter(self._model, hidden, new)
        self._model.advance([one])
        taken = []
        for i, guess, chosen in zip(
            self._going, guesses.tolist(), self._chosen(one, count + 1).tolist(), strict=True
        ):
            right = _agreed(guess, chosen, self._model.ends)
            self._ids[i] += chosen[: right + 1]
            del self._ids[i][self._limit :]  # of a text that is further than others
            taken.append(right)
        return taken

    def _follow(self, taken: Sequence[int], guesses: torch.Tensor) -> None:
        """Make ready for the next round: mask what was wrong, let go of answers at their ends."""
        count = guesses.shape[1]
        if self._record is not None:
            self._record.judged += sum(min(right + 1, count) for right in taken)
            self._record.wrong += sum(right < count for right in taken)
        for row, right in enumerate(taken if count else ()):
            self._exact.mask[row, self._exact.mask.shape[1] - count + right :] = 0
            # The draft has not seen its own last token.
            unseen = self._short.mask.shape[1] - (count - 1) + right
            self._short.mask[row, unseen:] = 0
        ids = [self._ids[i] for i in self._going]
        rows = [
            row
            for row, one in enumerate(ids)
            if len(one) < self._limit and one[-1] not in self._model.ends
        ]
        if self._record is not None:
            # Where all was right, the draft lacks the last but one.
            lag = self._ids_of([[one[-2] if len(one) > 1 else 0] for one in ids])
            lacks = self._ids_of([[int(right == count)] for right in taken])
            self._lag = self._embedded(lag)[rows], lacks[rows]
        self._next = self._embedded(self._ids_of([one[-1:] for one in ids]))[rows]
        self._new = self._ids_of([[1] for _ in rows])
        if rows and len(rows) < len(ids):
            for side in (self._exact, self._short) if self._record else (self._exact,):
                side.keep(rows)
        self._going = [self._going[row] for row in rows]

    def _ids_of(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Int64 [texts, tokens], where the model is."""
        return torch.tensor(rows, dtype=torch.long, device=self._model.unit)

    def _embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """Vectors [texts, tokens, hidden size] of ids [texts, tokens]."""
        return self._model.embed(ids.flatten().tolist()).unflatten(0, ids.shape)

    def _chosen(self, one: Pass, count: int) -> torch.Tensor:
        """The likeliest ids after each of the last ``count`` tokens, int64 [texts, count]; the
        logits of few tokens at a time are in memory."""
        parts = one.hidden[:, -count:].split(max(1, LONGEST_DRAFT // count))
        found = [self._model.predictions(Pass(part, [], None)).argmax(-1) for part in parts]
        return torch.cat(found)


def _agreed(guess: Sequence[int], chosen: Sequence[int], ends: frozenset[int]) -> int:
    """How many of ``guess`` are the model's own choice, before the first that is not and before
    an end of the text."""
    for i, (ours, exact) in enumerate(zip(guess, chosen, strict=False)):
        if ours != exact or exact in ends:
            return i
    return len(guess)
