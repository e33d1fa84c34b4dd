"""In a checkpoint's place where none was read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, cast

if TYPE_CHECKING:
    from phipipe.models.checkpoint import Checkpoint


class Unseen(Exception):
    """Something of a checkpoint was asked for where no checkpoint was read."""


class _AnyModel:
    """In a checkpoint's place where none was read: what looks at it cannot be decided."""

    def __getattr__(self, name: str) -> NoReturn:
        raise Unseen(name)


ANY_MODEL = cast("Checkpoint", _AnyModel())
