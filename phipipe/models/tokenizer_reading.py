"""One reading of a tokenizer: ``tokenizer.json`` is the truth where it exists.

transformers 5 builds some tokenizers anew from the class that ``tokenizer_config.json`` names, with
that class's own way of cutting text, and takes vocabulary and merges alone from ``tokenizer.json``.
Where this reads a text otherwise than the file itself, the staged copy names the class that takes
the file as it is, so that every tool reads the same; where that does not help, the checkpoint is
refused. Only tokenizer files are needed, a few MB.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from phipipe.errors import SourceError, StepFailed
from phipipe.files import json_files
from phipipe.models import (
    staging,
    tokenizer,
    tokenizer_difference,
    tokenizer_files,
    tokenizer_texts,
)
from phipipe.models.tokenizer_difference import Difference
from phipipe.sandbox.limited import Raised
from phipipe.sandbox.tokenizer import LimitedTokenizer
from phipipe.steps import Inputs, Json, Params

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# All that either reader looks at; what is not among them changes no verdict.
FILES = (
    *(FILE, SETTINGS, "config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
AS_IT_IS = "PreTrainedTokenizerFast"  # transformers' class that takes `tokenizer.json` as it is
# Model types whose named class transformers 5 passes over, for it was wrong on the hub so often
# (`MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS` in its `tokenization_auto.py`).
CLASSLESS = frozenset({"phi3", "phi3_v", "phimoe"})
VERSION = 3  # of the comparison: verdicts of an earlier one are forgotten


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the comparison found. ``settings`` are keys of ``tokenizer_config.json`` that must be
    set for all to read alike, ``words`` say why; both are empty where all do."""

    settings: Mapping[str, Json] = field(default_factory=dict)
    words: str = ""


def read(folder: Path, python: Path | None = None) -> Reading:
    """Compare what transformers makes of the tokenizer in ``folder`` with ``tokenizer.json``, in
    limited children of ``python`` (default: this one), which has transformers.

    Raises:
        SourceError: they differ, and naming another class does not help; or the file is refused.
        ImportError: that Python lacks a library.
        ToolchainError: it cannot be started.
    """
    if not (folder / FILE).is_file():
        return Reading()
    with contextlib.closing(tokenizer.of_file(folder, python)) as truth:
        reason = _reason(folder, truth, python)
        if not reason:
            return Reading()
        settings = {"tokenizer_class": AS_IT_IS}
        with _mended(folder, settings) as scratch:
            if not _reason(scratch, truth, python):
                return Reading(settings=settings, words=reason)
    raise SourceError(
        f"`{folder / SETTINGS}` does not fit `{FILE}` beside it: {reason}",
        hint="take all tokenizer files from one place, best the original repository",
    )


def may_differ(folder: Path) -> bool:
    """Whether transformers may build the tokenizer in ``folder`` anew, by what its settings say:
    known without transformers."""
    if not (folder / FILE).is_file():
        return False
    settings = tokenizer_files.optional_settings(folder / SETTINGS)
    path = folder / "config.json"
    config = json_files.read_object(path) if path.is_file() else {}
    if "auto_map" not in settings and config.get("model_type") in CLASSLESS:
        return False
    return settings.get("tokenizer_class") not in (AS_IT_IS, "TokenizersBackend")


def mend(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``inputs["source"]``, a checkpoint, with ``params["settings"]``, for each file the keys
    to set; weights are linked where the file system can."""
    for path in sorted(inputs["source"].iterdir()):
        if path.name not in params["settings"]:
            staging.take(path, out / path.name)
    for name, settings in params["settings"].items():
        _write(inputs["source"] / name, out, settings)


def check(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the tokenizer in ``inputs["files"]`` is read as its ``tokenizer.json`` has it.

    Raises:
        SourceError: it is not. The plan mends it, where the toolchain is there when it is made.
    """
    found = read(inputs["files"])
    if found.settings:
        raise SourceError(
            f"the checkpoint's `{SETTINGS}` does not fit its `{FILE}`: {found.words}",
            hint="run the same command again: now that the toolchain is there, the plan mends it "
            "(on a cluster: `phipipe toolchain install torch` where you plan)",
        )
    (out / "tokenizer.json").write_text(json.dumps({"equal": True}) + "\n", "utf-8")


def _reason(folder: Path, truth: LimitedTokenizer, python: Path | None) -> str:
    """Why transformers' tokenizer of ``folder`` is not ``truth``; nothing where it is."""
    try:
        theirs = tokenizer.of_source(folder, python)
    except (SourceError, StepFailed) as refusal:
        return refusal.message
    with contextlib.closing(theirs):
        found = difference(folder, truth, theirs)
        return f"transformers reads {found.words}" if found else ""


def difference(
    folder: Path, truth: LimitedTokenizer, theirs: LimitedTokenizer
) -> Difference | None:
    """Where ``theirs`` reads plain text, else chats and special tokens, otherwise than ``truth``;
    ``theirs`` renders the chats."""
    every = (*tokenizer_texts.PLAIN, *tokenizer_texts.NUMBERS, *tokenizer_texts.ODD)
    plain = tokenizer_difference.first("text", every, truth.encode, theirs.encode)
    if plain:
        return plain
    marked = [*tokenizer_texts.around(specials(folder)), *rendered(theirs)]
    return tokenizer_difference.first("chat", marked, truth.encode, theirs.encode)


def written(folder: Path, theirs: LimitedTokenizer) -> list[str]:
    """Chats as ``theirs`` renders them, and short texts with the special tokens that stand in
    these: all that a program gives a runtime to read beside plain text."""
    chats = rendered(theirs)
    used = [token for token in specials(folder) if any(token in chat for chat in chats)]
    return [*tokenizer_texts.around(used), *chats]


def specials(folder: Path) -> list[str]:
    """The special tokens that ``tokenizer.json`` in ``folder`` adds, by their ids; none without
    the file."""
    if not (folder / FILE).is_file():
        return []
    added = json_files.read_object(folder / FILE).get("added_tokens") or []
    return [entry["content"] for entry in added if entry.get("special") and entry["content"]]


def rendered(theirs: LimitedTokenizer) -> list[str]:
    """``CHATS`` in its template, without those that it refuses; none without a template."""
    texts: list[str] = []
    for chat in tokenizer_texts.CHATS if theirs.facts["chat_template"] else ():
        with contextlib.suppress(Raised):
            texts.append(theirs.render(chat))
    return texts


@contextlib.contextmanager
def _mended(folder: Path, settings: Mapping[str, Json]) -> Iterator[Path]:
    """A folder with the tokenizer files of ``folder``, ``settings`` set."""
    with tempfile.TemporaryDirectory(prefix="phipipe-tokenizer-") as scratch:
        for name in FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, Path(scratch) / name)
        _write(folder / SETTINGS, Path(scratch), settings)
        yield Path(scratch)


def _write(path: Path, out: Path, settings: Mapping[str, Json]) -> None:
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    text = json.dumps(known | dict(settings), indent=2, ensure_ascii=False) + "\n"
    (out / path.name).write_bytes(text.encode("utf-8", "surrogatepass"))
