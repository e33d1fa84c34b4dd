"""Greedy answers of a ``Layerwise`` model: one token of each text in a pass through the layers.

All texts go through a layer as one batch where that changes none of them. The shorter ones begin
with padding, which is masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from phipipe import progress
from phipipe.models import compute
from phipipe.models.layerwise import Layerwise, Pass


def answer(
    model: Layerwise, prompts: Sequence[Sequence[int] | torch.Tensor], limit: int
) -> list[list[int]]:
    """To each prompt (ids, or vectors as of ``Layerwise.embed``) at most ``limit`` token ids,
    chosen greedily; an end-of-text token is the last."""
    if not prompts or not limit:
        return [[] for _ in prompts]
    with torch.inference_mode():
        texts = [model.seen(prompt) for prompt in prompts]
        if model.weight_bytes < compute.free_bytes(model.unit):
            model.stay()
        tokens = max(map(len, texts)) + limit
        one_batch = tokens < min(_turned(model), _seen_again(model))
        return (_together if one_batch else _apart)(model, texts, limit)


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


def _apart(model: Layerwise, texts: Sequence[torch.Tensor], limit: int) -> list[list[int]]:
    """The answers to ``texts``, each by itself."""
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


def _together(model: Layerwise, texts: Sequence[torch.Tensor], limit: int) -> list[list[int]]:
    """The answers to ``texts`` in one batch."""
    longest = max(map(len, texts))
    lacking = [longest - len(text) for text in texts]
    padded = [pad(text, (0, 0, n, 0)) for text, n in zip(texts, lacking, strict=True)]
    pending, cache = torch.stack(padded), None
    mask = torch.tensor([[0] * n + [1] * (longest - n) for n in lacking], device=model.unit)
    answers: list[list[int]] = [[] for _ in texts]
    going = list(range(len(texts)))  # which text is in each row of the batch
    for step in range(limit):
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -pending.shape[1] :]
        one = model.enter_cached(pending, cache, attention_mask=mask, position_ids=places)
        model.advance([one])
        cache = one.cache
        chosen = model.predictions(Pass(one.hidden[:, -1:], [], None))[:, -1].argmax(-1).tolist()
        for text, token in zip(going, chosen, strict=True):
            answers[text].append(token)
        progress.report(step + 1, limit, "tokens")
        rows = [row for row, token in enumerate(chosen) if token not in model.ends]
        if not rows:
            break
        if len(rows) < len(going):
            kept = torch.tensor(rows, device=model.unit)
            mask = mask[kept]
            cache.batch_select_indices(kept)
            going = [going[row] for row in rows]
        pending = model.embed([answers[text][-1] for text in going])[:, None]
        mask = pad(mask, (0, 1), value=1)
    return answers
