"""The step that takes files into the store by copy, and what is looked at before a checkpoint is
used, however it comes."""

from __future__ import annotations

import shutil
from pathlib import Path

from phipipe import progress
from phipipe.models import checkpoints
from phipipe.sandbox import chat_templates
from phipipe.steps import Inputs, Params
from phipipe.words import MIB


def take(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: copy the files as they are. ``inputs["files"]`` is a folder, ``params["files"]`` the
    names in it.

    The bench adds ``params["files"]`` from the step's ``Outside`` and compares the copy's digest
    with the one in the key, so a source that changes meanwhile is noticed.

    Raises:
        SourceError: see ``checkpoints.read``; or its chat template takes more than it may.
    """
    sizes = {name: (inputs["files"] / name).stat().st_size for name in params["files"]}
    copied, total = 0, sum(sizes.values())
    for name, size_bytes in sizes.items():
        shutil.copyfile(inputs["files"] / name, out / name)
        copied += size_bytes
        if total >= MIB:
            progress.report(copied // MIB, total // MIB, "MiB")
    vet(out)


def vet(folder: Path) -> None:
    """Look at what was taken, if it is a checkpoint, as toolchains will see it.

    Raises:
        SourceError: see ``checkpoints.read``; or its chat template takes more than it may.
    """
    if (folder / "config.json").is_file():
        checkpoints.read(folder)
        chat_templates.check(folder)
