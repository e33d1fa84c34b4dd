"""Do the tokenizer files of a checkpoint say the same? Each toolchain reads another of them.

transformers and OpenVINO read ``tokenizer.json``, MLX also ``tokenizer_config.json``, llama.cpp
``tokenizer.model`` with ``added_tokens.json``: where these disagree, every runtime gets a tokenizer
of its own. Of ``tokenizer.model`` the pieces are compared; which of them a text becomes is left to
the comparison of token ids after each conversion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import remarks, sentencepiece_file
from phipipe.models.remarks import Remark
from phipipe.steps import Json

_HINT = "take all tokenizer files from one place, best the original repository"
MAX_TOKENS, MAX_SETTINGS_BYTES = 2**22, 2**23
_SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))


def settings(path: Path) -> dict[str, Json]:
    """What ``tokenizer_config.json`` or ``special_tokens_map.json`` in ``path`` says, each key of
    its own kind.

    Raises:
        SourceError: names the file and the key.
    """
    content = json_files.read_object(path, MAX_SETTINGS_BYTES)
    for key, kinds in _KINDS.items():
        value = content.get(key)
        if value is not None and (
            not isinstance(value, kinds) or (value is True or value is False) is not (bool in kinds)
        ):
            raise SourceError(f"`{path}` is malformed: `{key}` is {_kind(value)}", hint=_HINT)
    for key in _SPECIAL:
        if isinstance(content.get(key), dict) and not isinstance(content[key].get("content"), str):
            raise SourceError(f"`{path}` is malformed: `{key}` has no text", hint=_HINT)
    name = content.get("tokenizer_class")
    if name is not None and (not name.isprintable() or len(name) > 100):
        raise SourceError(
            f"`{path}` is malformed: `tokenizer_class` is no name of a class", hint=_HINT
        )
    if isinstance(content.get("chat_template"), list):
        for entry in content["chat_template"]:
            if not isinstance(entry, dict) or not all(
                isinstance(entry.get(k), str) for k in ("name", "template")
            ):
                raise SourceError(
                    f"`{path}` is malformed: `chat_template` has one without name or text",
                    hint=_HINT,
                )
    return content


_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(_SPECIAL, (str, dict)),
    **dict.fromkeys(
        ("tokenizer_class", "processor_class", "padding_side", "truncation_side"), (str,)
    ),
    **dict.fromkeys(
        ("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces"),
        (bool,),
    ),
    **dict.fromkeys(("legacy", "split_special_tokens", "use_default_system_prompt"), (bool,)),
    "added_tokens_decoder": (dict,),
    "additional_special_tokens": (list,),
    "extra_special_tokens": (list, dict),
    "chat_template": (str, list, dict),
    "model_max_length": (int, float),
}


def _kind(value: object) -> str:
    names = {
        dict: "a table",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "of another kind")


# All that ``check`` looks at.
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt"),
)


def check(folder: Path, vocab_size: int) -> list[Remark]:
    """Compare what the files in ``folder`` say about tokens and ids; ``vocab_size`` is that of the
    model.

    Raises:
        SourceError: a token has two ids, an id two tokens, an id is beyond the model's vocabulary,
            a file is damaged.
    """
    ids: dict[str, tuple[int, str]] = {}
    added: dict[int, tuple[str, str]] = {}
    beyond: set[str] = set()
    padding = _padding(folder)
    for file, token, number, is_added in _entries(folder):
        known, where = ids.setdefault(token, (number, file))
        if known != number:
            raise SourceError(
                f"the tokenizer files disagree: `{json_files.shown(token)}` is token {known} in "
                f"`{where}` and {number} "
                f"in `{file}`",
                hint=_HINT,
            )
        other, where = added.setdefault(number, (token, file)) if is_added else (token, file)
        if other != token:
            raise SourceError(
                f"the tokenizer files disagree: token {number} is `{json_files.shown(other)}` "
                f"in `{where}` and "
                f"`{json_files.shown(token)}` in `{file}`",
                hint=_HINT,
            )
        if number >= vocab_size and token == padding:
            beyond.add(token)
        elif number >= vocab_size:
            raise SourceError(
                f"`{file}` has token {number} (`{json_files.shown(token)}`), but the model's "
                f"vocabulary ends at "
                f"{vocab_size - 1}: the tokenizer belongs to another model",
                hint=_HINT,
            )
    return [remarks.of("W04", json_files.shown(token)) for token in beyond]


def optional_settings(path: Path) -> dict[str, Json]:
    """``settings`` of a file that need not be there."""
    return settings(path) if path.is_file() else {}


def text_of(settings: Mapping[str, Json], name: str) -> str | None:
    """The text of the special token ``name`` ("eos_token") in a tokenizer's ``settings``."""
    token = settings.get(name)
    return str(token["content"] if isinstance(token, dict) else token) if token else None


def _padding(folder: Path) -> str | None:
    """The token that batches are filled up with."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if token := text_of(optional_settings(folder / name), "pad_token"):
            return token
    return None


def _entries(folder: Path) -> Iterator[tuple[str, str, int, bool]]:
    """(file, token, id, whether it was added to the vocabulary proper) for all that the files
    say."""
    for file, token, number, is_added in _listed(folder):
        if not isinstance(token, str) or type(number) is not int or not 0 <= number < MAX_TOKENS:
            raise _damaged(folder / file, "has a token without text or number")
        yield file, token, number, is_added


def _listed(folder: Path) -> Iterator[tuple[str, Json, Json, bool]]:
    file = "tokenizer.json"
    whole = _json(folder / file)
    model = whole.get("model", None if whole else {"vocab": {}})
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from ((file, token, number, False) for token, number in vocabulary.items())
    elif isinstance(vocabulary, list):
        yield from (
            (file, e[0] if isinstance(e, list) and e else None, i, False)
            for i, e in enumerate(vocabulary)
        )
    else:
        raise _damaged(folder / file, "has no vocabulary")
    for entry in _list(folder / file, whole.get("added_tokens")):
        yield file, entry.get("content"), entry.get("id"), True
    file = "tokenizer_config.json"
    for number, entry in (_json(folder / file).get("added_tokens_decoder") or {}).items():
        known = (
            isinstance(entry, dict) and number.isascii() and number.isdecimal() and len(number) < 10
        )
        yield file, entry.get("content") if known else None, int(number) if known else None, True
    file = "added_tokens.json"
    yield from ((file, token, number, True) for token, number in _json(folder / file).items())
    file = "tokenizer.model"
    if (folder / file).is_file():
        found = sentencepiece_file.pieces(folder / file)
        yield from ((file, piece, number, False) for number, piece in enumerate(found))
    elif not whole and (folder / "vocab.json").is_file():
        yield from _words(folder)


def _words(folder: Path) -> Iterator[tuple[str, Json, Json, bool]]:
    """Tokens of the older pair of files, which is the tokenizer where no other is."""
    path = folder / "merges.txt"
    try:
        merges = path.read_text("utf-8") if path.is_file() else ""
    except UnicodeDecodeError:
        raise _damaged(path, "is not UTF-8") from None
    if not merges.strip():
        raise _damaged(path, "is empty, or not there; `vocab.json` needs it")
    file = "vocab.json"
    yield from ((file, token, number, False) for token, number in _json(folder / file).items())


def _list(path: Path, value: Json) -> list[dict[str, Json]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise _damaged(path, "has `added_tokens` that are no list of tokens")
    return value


def _damaged(path: Path, what: str) -> SourceError:
    return SourceError(
        f"the checkpoint's tokenizer files are damaged: `{path.name}` {what}", hint=_HINT
    )


def _json(path: Path) -> dict[str, Json]:
    """What is in ``path``, an empty mapping where there is no such file."""
    if not path.is_file():
        return {}
    return settings(path) if path.name == "tokenizer_config.json" else json_files.read_object(path)


def end_ids(ids: Json) -> list[int]:
    """Ids of the tokens that end a text, of what a config has as `eos_token_id`: one, several or
    none."""
    if ids is None:
        return []
    return list(ids) if isinstance(ids, list) else [ids]
