"""The rule that groups of weights must divide a model's rows, for the backends that would otherwise
fall back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from phipipe.backends.rules import Rule

if TYPE_CHECKING:
    from phipipe.backends.base import Options
    from phipipe.models.checkpoint import Checkpoint

LAYERS = {
    "hidden_size": "attention and MLP input",
    "intermediate_size": "down projection",
    "heads times head size": "attention output projection",
}


def rule(name: str, precisions: Collection[str], sizes: Sequence[int]) -> Rule:
    """``name``'s rule: at ``precisions``, ``group_size`` divides every row; the hint picks from
    ``sizes``."""
    return Rule(
        id=name,
        level="error",
        when=lambda r, o, c: (
            r.precision in precisions
            and r.weights.learn is None  # those have groups of their own
            and _odd(o.group_size, c) is not None
        ),
        message="`quantize.group_size: {options.group_size}` does not divide the width of the "
        "{layer} ({width})",
        hint="these work: {working} (-1 is a whole row)",
        words=lambda r, o, c: _words(o, c, sizes),
    )


def _odd(size: int, checkpoint: Checkpoint) -> str | None:
    """The first width that groups of ``size`` do not divide; -1 is a whole row."""
    return next(
        (name for name, width in checkpoint.input_widths.items() if size != -1 and width % size),
        None,
    )


def _words(options: Options, checkpoint: Checkpoint, sizes: Sequence[int]) -> dict[str, object]:
    known, odd = checkpoint.input_widths, str(_odd(options.group_size, checkpoint))
    working = [str(size) for size in sizes if checkpoint.is_divided_by(size)]
    return {
        "layer": LAYERS[odd],
        "width": f"{odd}: {known[odd]}",
        "working": ", ".join([*working, "-1"]),
    }
