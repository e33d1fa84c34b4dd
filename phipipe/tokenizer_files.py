"""Do the tokenizer files of a checkpoint say the same? Each toolchain reads another of them.

transformers and OpenVINO read ``tokenizer.json``, MLX also ``tokenizer_config.json``, llama.cpp ``tokenizer.model``
with ``added_tokens.json``: where these disagree, every runtime gets a tokenizer of its own. What is inside a binary
``tokenizer.model`` is left to the comparison of token ids after each conversion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phipipe.errors import SourceError

_HINT = "take all tokenizer files from one place, best the original repository"


def check(folder: Path, vocab_size: int) -> None:
    """Compare what the files in ``folder`` say about tokens and ids; ``vocab_size`` is that of the model.

    Raises:
        SourceError: a token has two ids, an id two tokens, an id is beyond the model's vocabulary, a file is damaged.
    """
    ids: dict[str, tuple[int, str]] = {}
    added: dict[int, tuple[str, str]] = {}
    try:
        entries = list(_entries(folder))
    except (KeyError, TypeError, AttributeError, ValueError) as wrong:
        raise SourceError(f"the checkpoint's tokenizer files are damaged: {wrong!r}", hint=_HINT) from None
    for file, token, number, is_added in entries:
        known, where = ids.setdefault(token, (number, file))
        if known != number:
            raise SourceError(
                f"the tokenizer files disagree: `{token}` is token {known} in `{where}` and {number} in `{file}`",
                hint=_HINT,
            )
        other, where = added.setdefault(number, (token, file)) if is_added else (token, file)
        if other != token:
            raise SourceError(
                f"the tokenizer files disagree: token {number} is `{other}` in `{where}` and `{token}` in `{file}`",
                hint=_HINT,
            )
        if number >= vocab_size:
            raise SourceError(
                f"`{file}` has token {number} (`{token}`), but the model's vocabulary ends at {vocab_size - 1}: "
                "the tokenizer belongs to another model",
                hint=_HINT,
            )


def _entries(folder: Path) -> Iterator[tuple[str, str, int, bool]]:
    """(file, token, id, whether it was added to the vocabulary proper) for all that the files say."""
    whole = _json(folder / "tokenizer.json")
    vocabulary = whole.get("model", {}).get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((e[0], i) for i, e in enumerate(vocabulary))
    yield from (("tokenizer.json", token, number, False) for token, number in pairs)
    yield from (("tokenizer.json", e["content"], e["id"], True) for e in whole.get("added_tokens", ()))
    settings = _json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    yield from (("tokenizer_config.json", e["content"], int(number), True) for number, e in settings.items())
    more = _json(folder / "added_tokens.json")
    yield from (("added_tokens.json", token, number, True) for token, number in more.items())


def _json(path: Path) -> Any:
    """What is in ``path``, an empty mapping where there is no such file."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
