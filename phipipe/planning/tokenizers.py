"""The original's tokenizer, read once before anything is built: mended, refused, or left to a first
step where the toolchain that can tell is not here yet."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from phipipe.errors import SourceError, StoreError, ToolchainError
from phipipe.hub import take
from phipipe.hub.mending import mended
from phipipe.hub.take import Original
from phipipe.models import held, remarks, stop_tokens, tokenizer_reading
from phipipe.models.checkpoint import Checkpoint
from phipipe.models.held import Held
from phipipe.models.remarks import Remark
from phipipe.models.tokenizer_reading import FILES, VERSION, Reading
from phipipe.recipe.source import Source
from phipipe.sandbox import template_files
from phipipe.sandbox.chat_templates import CLOCK
from phipipe.settings import Settings
from phipipe.steps import Json, Outside, Step
from phipipe.store import keys
from phipipe.toolchains import environments
from phipipe.vision import kinds

TOOLCHAIN = "torch"
FOLDER = "tokenizers"  # in the cache: what was found of each set of files
CHECK = "tokenizer"  # name of the step


def original(source: Source, folder: Path) -> Original:
    """As ``hub.original``, with its tokenizer ``examined``.

    Raises:
        SourceError: as both.
    """
    return examined(take.original(source, folder))


def examined(original: Original) -> Original:
    """``original`` with its tokenizer mended where that is needed; with a first step that compares
    it where nothing here can.

    Raises:
        SourceError: its tokenizer files contradict each other.
    """
    folder = original.checkpoint.folder
    if folder in take.BUILTIN_MODELS.values() or folder == Path():
        return original
    settings, said = _with_all_ends(original.checkpoint)
    if clocks := [n for n, text in template_files.read(folder).items() if CLOCK in text]:
        said.append(remarks.of("W22", *clocks))
    # transformers knows no class for the config of a model that sees; its language model's
    # tokenizer is compared after the conversion
    readable = (folder / tokenizer_reading.FILE).is_file() and not kinds.sees(original.checkpoint)
    found = _reading(folder) if readable else Reading()
    if found and found.settings:
        settings[tokenizer_reading.SETTINGS] = found.settings
        kind = remarks.KINDS["W20"]
        words = kind.message.format(names=found.words)
        said.append(Remark(rule="W20", message=words, hint=kind.hint))
    result = mended(original, settings, said) if settings else _noted(original, said)
    unsure = found is None and tokenizer_reading.may_differ(folder)
    return _checked_first(result) if unsure else result


def _noted(original: Original, said: Sequence[Remark]) -> Original:
    checkpoint = original.checkpoint
    return replace(original, checkpoint=replace(checkpoint, remarks=(*checkpoint.remarks, *said)))


def _with_all_ends(checkpoint: Checkpoint) -> tuple[dict[str, Mapping[str, Json]], list[Remark]]:
    """What ``generation_config.json`` must say for all tools to end an answer alike, if it does
    not."""
    folder, config = checkpoint.folder, checkpoint.config
    files = held.by((*FILES, stop_tokens.GENERATION), folder)
    known, wanted = _ends(files, json.dumps(config, sort_keys=True))
    more = [number for number in wanted if number not in known]
    if not more:
        return {}, []
    remark = remarks.of("W21", *(f"token {number}" for number in more))
    return {stop_tokens.GENERATION: {"eos_token_id": list(wanted)}}, [remark]


@lru_cache(maxsize=256)
def _ends(files: Held, config: str) -> tuple[list[int], list[int]]:
    """Rendered once for all sources with such files."""
    folder, read = files.folder, json.loads(config)
    return stop_tokens.known(folder, read), stop_tokens.wanted(folder, read)


def _checked_first(original: Original) -> Original:
    """``original`` whose files are taken after its tokenizer was compared."""
    folder = original.checkpoint.folder
    names = tuple(name for name in FILES if (folder / name).is_file())
    check = Step(
        name=CHECK,
        runs="models/check_tokenizer",
        version=VERSION,
        outside={"files": Outside(folder, names)},
        toolchain=TOOLCHAIN,
    )
    before = (check, *map(_waiting, original.before))
    return replace(original, before=before, step=_waiting(original.step))


def _waiting(step: Step) -> Step:
    return replace(step, after=(*step.after, CHECK))


def _reading(folder: Path) -> Reading | None:
    """What a comparison of the files in ``folder`` finds, or found before; None where this machine
    lacks the toolchain, or has a damaged one."""
    used = Settings.read()
    usable = environments.installed(TOOLCHAIN, used)
    if usable is None:
        return None
    versions = {name: usable.packages.get(name) for name in ("tokenizers", "transformers")}
    memory = used.cache / FOLDER / f"{_digest(folder, json.dumps(versions))}.json"
    with contextlib.suppress(ImportError, ToolchainError):
        found = _remembered(folder, usable.python, memory)
        if isinstance(found, SourceError):
            raise found
        return found
    return None


@lru_cache(maxsize=256)
def _remembered(folder: Path, python: Path, memory: Path) -> Reading | SourceError:
    """What ``memory`` says, else what a comparison finds, which is written there unless it is a
    refusal."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, StoreError):
        known = keys.open_sealed(memory.read_bytes())
        return Reading(settings=dict(known["settings"]), words=str(known["words"]))
    try:
        found = tokenizer_reading.read(folder, python)
    except SourceError as refusal:
        return refusal
    aside = memory.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # a full disk: compared again the next time
        memory.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(
            keys.seal_record({"settings": dict(found.settings), "words": found.words})
        )
        aside.replace(memory)
    return found


def _digest(folder: Path, versions: str) -> str:
    """Of all that decides what is found."""
    digest = hashlib.sha256(f"{VERSION} {versions}".encode())
    for name in FILES:
        if (folder / name).is_file():
            digest.update(f"\n{name} ".encode() + keys.hash_file(folder / name).encode())
    return digest.hexdigest()[:32]
