"""What a backend module must offer, and the few types that cross its border."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import BaseModel

from phipipe.errors import TargetError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from phipipe.device import Unit
    from phipipe.models import Checkpoint
    from phipipe.recipe import Precision, Recipe
    from phipipe.steps import Advice, Json, Step


class Unseen(Exception):
    """Something of a checkpoint was asked for where no checkpoint was read."""


class _AnyModel:
    """In a checkpoint's place where none was read: what looks at it cannot be decided."""

    def __getattr__(self, name: str) -> Any:
        raise Unseen(name)


ANY_MODEL = cast("Checkpoint", _AnyModel())


class Runtime(Protocol):
    """An opened artifact; the seam that makes every number comparable."""

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of every position, float32 [len(tokens), vocabulary]; no state is kept between
        calls."""

    def generate(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        """At most ``limit`` token ids, chosen greedily; ends after an end-of-text token (which it
        yields)."""

    def close(self) -> None:
        """Free the model. The object is not used afterwards."""


class Tokenizer(Protocol):
    """The tokenizer that ships inside an artifact, as its own runtime reads it."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without added special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, without special tokens."""

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A chat (``role``, ``content`` each) in the artifact's chat template, ready for the
        answer."""


def staged(source: Path, patch: Mapping[str, Json], scratch: Path) -> Path:
    """The checkpoint ``source`` in the new folder ``scratch``, its ``config.json`` patched.

    ``patch`` replaces top-level keys. ``source`` itself is never changed: weights are hard links to
    its files, which no converter opens for writing, where the file system has them; everything else
    is copied. Nothing is a symbolic link, which converters refuse or follow.
    """
    scratch.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file():
            take = _link if path.suffix == ".safetensors" else shutil.copyfile
            take(path, scratch / path.name)
    config = scratch / "config.json"
    patched = json.loads(config.read_text("utf-8")) | dict(patch)
    config.write_text(json.dumps(patched, indent=2) + "\n", "utf-8")
    return scratch


def _link(source: Path, target: Path) -> None:
    """Another name for ``source``; a copy where the system refuses, and on Windows.

    There, the name of a read-only file is removed by making the file writable, which would be the
    store's own.
    """
    if os.name != "nt":
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def absent(unit: str, seen: str) -> TargetError:
    """The error for a machine without ``unit``; ``seen`` says who looked for it."""
    return TargetError(
        f"this machine has no {unit} that {seen} can use",
        hint="measure on the device itself; `phipipe eval PACKAGE` evaluates the file here, on "
        "the CPU",
    )


class Backend(Protocol):
    """The fixed set of names that ``phipipe/backends/<name>.py`` defines at module level."""

    TITLE: str
    TOOLCHAIN: str
    APIS: frozenset[str]  # device unit APIs it can serve (phipipe/devices/*.yaml)
    SYSTEMS: frozenset[str]  # operating systems that its runtime exists for
    HOST_APIS: frozenset[
        str
    ]  # of these, what a build is measured on where the build machine has it
    STEPS: Mapping[str, str]  # its own steps: verb → ``module:function``; see ``phipipe.steps``
    EMULATED: Mapping[str, str]  # API → a step that runs an artifact as that unit would, here
    PRECISIONS: Mapping[str, Mapping[Precision, str]]  # per API: ours → its own scheme
    ON_DEVICE: Mapping[
        str, str
    ]  # API → the toolchain in which ``open(artifact, api)`` runs it on a machine that has it
    TOKENS_ONLY: frozenset[
        str
    ]  # of these, units whose runtime gives no logits: only speed is measured there
    FILES: tuple[
        str, ...
    ]  # what its packages hold besides what all have (``gate.COMMON``), as patterns of file names
    CACHE_BYTES: Mapping[
        str, int
    ]  # per API: bytes of one value in the KV cache, as the runtime keeps it by default

    @property
    def Options(self) -> type[BaseModel]:
        """The recipe's `quantize:` section."""

    def steps(
        self,
        recipe: Recipe,
        options: BaseModel,
        checkpoint: Checkpoint,
        config_patch: Mapping[str, Json],
        unit: Unit | None = None,
    ) -> list[Step]:
        """Steps from ``source`` to the artifact; the last one's output is what ships.

        ``options`` is an instance of this module's ``Options``. ``config_patch`` holds the
        checkpoint's recorded fix-ups; converters apply it to a ``staged`` copy. ``unit`` is the
        part of the device that will run the artifact, None for this machine's CPU.
        """

    def scheme(self, recipe: Recipe, options: BaseModel) -> str:
        """How the weights are stored, in the runtime's own words and few of them: "Q4_K_M"."""

    def context_length(self, options: BaseModel, checkpoint: Checkpoint, api: str) -> int | None:
        """Positions of the cache (prompt and answer) that the artifact fixes; None if it grows as
        it is used."""

    def advise(self, recipe: Recipe, options: BaseModel, checkpoint: Checkpoint) -> list[Advice]:
        """What is impossible ("error") or unwise ("warning") here, before anything is run.

        Where ``checkpoint`` is ``ANY_MODEL``, what holds for every model.
        """

    def open(self, artifact: Path, api: str = "cpu") -> Runtime:
        """Load an artifact (called inside the backend's toolchain).

        With "cpu" it is loaded so that figures show what the stored values are worth, whatever unit
        it is meant for; with another API of ``ON_DEVICE``, on that unit of this machine.

        Raises:
            TargetError: this machine has no such unit, or this toolchain cannot use it.
        """

    def tokenizer(self, artifact: Path) -> Tokenizer:
        """Open the artifact's own tokenizer (called inside the backend's toolchain)."""
