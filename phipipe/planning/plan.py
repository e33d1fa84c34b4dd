"""What a build amounts to: its target, its steps in an order that works, its warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from phipipe.models.checkpoint import Checkpoint
from phipipe.models.fit import Fit
from phipipe.planning.matrices import Matrices
from phipipe.recipe.build import Build
from phipipe.recipe.device import Device
from phipipe.steps import Advice, Json, Step


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that ``dispatch`` needs for one build; steps stand in an order that works."""

    build: Build
    device: Device
    api: str
    on_target: str  # "true": measured on such a device; "emulated"; "false"
    steps: tuple[Step, ...]
    source: Checkpoint | None = None  # None where a package is measured without its original
    # The original with its eyes, where ``source`` is its language model.
    seeing: Checkpoint | None = None
    warnings: tuple[Advice, ...] = ()
    fixups: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    fit: Fit | None = None  # what it takes on the device; None where nothing is built
    # what the runtime does by default where it is scored, and scoring does not (``Backend.knob``);
    # None where its unit gives no logits
    knob: str | None = None
    matrices: tuple[Matrices, ...] = ()  # what those with a width of their own take

    @property
    def checkpoint(self) -> Checkpoint:
        """The original's shape, which is known wherever something is built."""
        assert self.source is not None
        return self.source

    @property
    def whole(self) -> Checkpoint:
        """The original's shape with all its parts."""
        return self.seeing or self.checkpoint

    @property
    def toolchains(self) -> tuple[str, ...]:
        """Names of the toolchains that its steps run in, in order of first use."""
        return tuple(dict.fromkeys(s.toolchain for s in self.steps if s.toolchain))

    @property
    def memory_bytes(self) -> int:
        return max(step.memory_bytes for step in self.steps)
