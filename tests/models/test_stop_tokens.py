"""Every token that ends an answer is found, wherever it is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from testing import byte_tokenizers
from testing.byte_tokenizers import FIRST

from phipipe.models import checkpoints, stop_tokens

PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
TOKENS = (
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (byte_tokenizers.CHATML, "<|im_end|>"),
        (PHI, "<|end|>"),
        ("{{ '<|system|>\\nYou are Phi.<|end|>\\n' }}" + PHI, "<|end|>"),
        ("{{ bos_token }}" + PHI, "<|end|>"),
        (PHI.replace("<|end|>", ""), None),
        (
            "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] + "
            "('</s>' if m['role'] == 'assistant' else ' ') }}{% endfor %}",
            "</s>",
        ),
        ("{% for m in messages %}{{ m['content'] }} and {% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
        ("nothing of it", None),
    ],
)
def test_a_template_shows_the_token_that_ends_an_answer(template: str, end: str | None) -> None:
    assert stop_tokens.after_answer(template, {"bos_token": "<s>"}, TOKENS) == end


def ends_of(folder: Path) -> tuple[list[int], list[int]]:
    config = checkpoints.read(folder).config
    return stop_tokens.known(folder, config), stop_tokens.wanted(folder, config)


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize(
    ("generation", "config", "known", "wanted"),
    [
        ([FIRST + 2], FIRST + 2, [FIRST + 2], [FIRST + 2]),
        ([FIRST], FIRST + 2, [FIRST], [FIRST, FIRST + 2]),
        (None, FIRST, [FIRST], [FIRST, FIRST + 2]),
        ([FIRST + 2], [FIRST, FIRST + 1], [FIRST + 2], [FIRST + 2, FIRST, FIRST + 1]),
        ([FIRST + 2], 10**6, [FIRST + 2], [FIRST + 2]),
    ],
)
def test_all_places_count(
    tmp_path: Path, generation: Any, config: Any, known: list[int], wanted: list[int]
) -> None:
    folder = byte_tokenizers.write(tmp_path / "model")
    edit(folder / "config.json", eos_token_id=config)
    edit(folder / "generation_config.json", eos_token_id=generation)
    assert ends_of(folder) == (known, wanted)


def test_the_tokenizers_own_end_counts_without_a_template(tmp_path: Path) -> None:
    folder = byte_tokenizers.write(tmp_path / "model", eos_token_id=FIRST)
    edit(folder / "config.json", eos_token_id=None)
    edit(folder / "tokenizer_config.json", chat_template=None)
    assert ends_of(folder) == ([FIRST], [FIRST, FIRST + 2])
