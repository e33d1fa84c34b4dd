"""The original's tokenizer, read once before anything is built: mended, refused, or left to a first
step where the toolchain that can tell is not here yet."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from phipipe.errors import SourceError, StoreError, ToolchainError
from phipipe.hub import take
from phipipe.hub.take import Original
from phipipe.models import remarks, tokenizer_reading
from phipipe.models.remarks import Remark
from phipipe.models.tokenizer_reading import FILES, VERSION, Reading
from phipipe.settings import Settings
from phipipe.steps import Outside, Step
from phipipe.store import keys
from phipipe.toolchains import environments

TOOLCHAIN = "torch"
FOLDER = "tokenizers"  # in the cache: what was found of each set of files
CHECK, UNMENDED = "tokenizer", "unmended"  # names of steps


def examined(original: Original) -> Original:
    """``original`` with its tokenizer mended where that is needed; with a first step that compares
    it where nothing here can.

    Raises:
        SourceError: its tokenizer files contradict each other.
    """
    folder = original.checkpoint.folder
    if folder in take.BUILTIN_MODELS.values() or not (folder / tokenizer_reading.FILE).is_file():
        return original
    found = _reading(folder)
    if found is None:
        return _checked_first(original) if tokenizer_reading.may_differ(folder) else original
    return mended(original, found) if found.settings else original


def mended(original: Original, found: Reading) -> Original:
    """``original`` with ``found`` carried out on the staged copy, and said."""
    kind, checkpoint = remarks.KINDS["W20"], original.checkpoint
    said = kind.message.format(names=found.words)
    remark = Remark(rule="W20", message=said, hint=kind.hint)
    step = Step(
        name="source",
        runs="models/mend_tokenizer",
        version=1,
        needs={"source": UNMENDED},
        params={"settings": dict(found.settings)},
        output_bytes=original.step.output_bytes,
    )
    return replace(
        original,
        checkpoint=replace(checkpoint, remarks=(*checkpoint.remarks, remark)),
        before=(*original.before, replace(original.step, name=UNMENDED)),
        step=step,
        notes={**original.notes, "tokenizer_settings": dict(found.settings)},
    )


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
    settings = Settings.read()
    usable = environments.installed(TOOLCHAIN, settings)
    if usable is None:
        return None
    versions = {name: usable.packages.get(name) for name in ("tokenizers", "transformers")}
    memory = settings.cache / FOLDER / f"{_digest(folder, json.dumps(versions))}.json"
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
