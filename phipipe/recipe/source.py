"""Where the original comes from: a model, or a base with an adapter that is merged into it."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Literal

from pydantic import Field, model_validator

from phipipe.recipe.complaints import At
from phipipe.recipe.strict import Model, exactly_one
from phipipe.suggestions import shorten

COMMIT = r"^[0-9a-f]{40}$"
REPO = r"^[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*$"
# A path inside a repository that leads nowhere else, on any system.
GGUF = r"^(?!(.*/)?\.\.?/)([^/\\:\x00-\x1f]+/)*[^/\\:\x00-\x1f]+\.[gG][gG][uU][fF]$"
MAX_FILE = 500
_FILE = "A GGUF of `repo`, `/` between folders; none: the repository's safetensors."


def _pinned(repo: str | None, revision: str | None) -> None:
    if repo is not None and revision is None:
        raise ValueError(
            "`revision` is missing: a recipe pins the 40-hex commit to build from, never a branch"
        )
    if repo is None and revision is not None:
        raise At("revision", "`revision` is the commit of a `repo`, and there is none")


def is_gguf(file: str) -> bool:
    """Whether ``file`` can be a GGUF inside a repository, and nothing outside."""
    return len(file) <= MAX_FILE and file.isprintable() and bool(re.fullmatch(GGUF, file))


def _check_file(repo: str | None, file: str | None) -> None:
    if file is None:
        return
    if repo is None:
        raise At("file", "`file` is a GGUF of a `repo`, and there is none; a local one is a `path`")
    if not file.lower().endswith(".gguf"):
        raise At(
            "file",
            f"`{shorten(file)}` is no GGUF, and only those are taken one by one: without `file`, "
            f"the safetensors of the repository are the model",
        )
    if not is_gguf(file):
        raise At("file", f"`{shorten(file)}` is no path inside a repository, such as `Q8_0.gguf`")


class Adapter(Model):
    """A LoRA adapter in PEFT's layout: one of a hub repository at a commit, or a local folder."""

    repo: str | None = Field(None, pattern=REPO, description="OWNER/NAME on the Hugging Face hub.")
    revision: str | None = Field(
        None, pattern=COMMIT, description="The 40-hex commit of `repo`; never a branch."
    )
    path: str | None = Field(
        None, min_length=1, description="A local folder; relative to the recipe's folder."
    )

    @model_validator(mode="after")
    def _one(self) -> Adapter:
        exactly_one(self, ("repo", "path"))
        _pinned(self.repo, self.revision)
        return self


class Base(Model):
    """The model that an adapter was trained on: one of a hub repository at a commit, a local
    folder, or an embedded model."""

    repo: str | None = Field(None, pattern=REPO, description="OWNER/NAME on the Hugging Face hub.")
    revision: str | None = Field(
        None, pattern=COMMIT, description="The 40-hex commit of `repo`; never a branch."
    )
    file: str | None = Field(None, description=_FILE)
    path: str | None = Field(
        None, min_length=1, description="A local checkpoint; relative to the recipe's folder."
    )
    builtin: Literal["tiny-phi3"] | None = Field(None, description="A model that phipipe carries.")

    @model_validator(mode="after")
    def _one(self) -> Base:
        exactly_one(self, ("repo", "path", "builtin"))
        _pinned(self.repo, self.revision)
        _check_file(self.repo, self.file)
        return self


class Source(Model):
    """The original model: one of a hub repository at a commit, a local folder, an embedded model,
    or a base with an adapter that is merged into it."""

    repo: str | None = Field(None, pattern=REPO, description="OWNER/NAME on the Hugging Face hub.")
    revision: str | None = Field(
        None, pattern=COMMIT, description="The 40-hex commit of `repo`; never a branch."
    )
    file: str | None = Field(None, description=_FILE)
    path: str | None = Field(
        None, min_length=1, description="A local checkpoint; relative to the recipe's folder."
    )
    builtin: Literal["tiny-phi3"] | None = Field(None, description="A model that phipipe carries.")
    base: Base | None = Field(None, description="The model that `adapter` was trained on.")
    adapter: Adapter | None = Field(
        None, description="A LoRA adapter; it is merged into `base` before anything is built."
    )

    @model_validator(mode="after")
    def _one(self) -> Source:
        if self.adapter is not None and self.base is None:
            raise At("adapter", "`base` is missing: the model that the adapter was trained on")
        if self.base is not None and self.adapter is None:
            raise At(
                "base",
                "`base` is the model of an `adapter`, and there is none; a model alone stands "
                "under `source` itself",
            )
        exactly_one(self, ("repo", "path", "builtin", "adapter"))
        _pinned(self.repo, self.revision)
        _check_file(self.repo, self.file)
        return self

    @property
    def origin(self) -> Source:
        """The model without an adapter: the base, or the source itself."""
        if self.base is None:
            return self
        return Source.model_validate(self.base.model_dump(exclude_none=True))

    @property
    def paths(self) -> dict[tuple[str, ...], str]:
        """Local folders that it names, by the keys that do so."""
        named: dict[tuple[str, ...], str | None] = {
            ("path",): self.path,
            ("base", "path"): self.base.path if self.base else None,
            ("adapter", "path"): self.adapter.path if self.adapter else None,
        }
        return {where: path for where, path in named.items() if path is not None}

    @property
    def title(self) -> str:
        """What the model is called; of a folder, its name."""
        if self.adapter is not None:
            return f"{_name(self.adapter)} on {self.origin.title}"
        return self.builtin or _name(self)


def _name(part: Source | Adapter) -> str:
    return part.repo or PurePath(str(part.path)).name or str(part.path)
