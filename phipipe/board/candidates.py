"""Builds as decisions see them, and the decisions: which build to ship to which device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from phipipe.package import figures

Aim = Literal["size", "fidelity", "answer speed"]
Place = Literal["true", "emulated", "false"]
# a speed that was taken once stands for a tenth less to a tenth more, as repetitions differ
ONCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Answer tokens per second: the median, the ends of its spread, and what speeds must share to
    compare."""

    value: float
    low: float
    high: float
    conditions: tuple[str, int]

    @classmethod
    def of(cls, value: float, spread: Sequence[float], conditions: tuple[str, int]) -> Speed:
        """With the spread of its repetitions, or a wide one where it was taken once."""
        ends = [end for end in spread if end != value] or [(1 - ONCE) * value, (1 + ONCE) * value]
        return cls(
            value=value, low=min(*ends, value), high=max(*ends, value), conditions=conditions
        )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a decision needs of a build; a figure that nobody took is None. Names are distinct."""

    name: str
    device: str  # its title
    backend: str
    api: str = ""
    failed: bool = False
    size: float | None = None  # GiB
    kld: float | None = None
    # the divergence over those windows that all builds of the board scored, where they differ
    paired: float | None = None
    bound: bool = False  # the divergence is a lower bound
    quantized: bool = False
    sound: bool = True  # reads text and chats as the original does
    accepted: bool = False  # but for some text, as its recipe accepts
    place: Place = "false"  # where it was measured: on the device, emulated, or anywhere
    speed: Speed | None = None
    wider: str = ""  # the change of its recipe that spends more bits on all weights
    finer: str = ""  # the change that comes closer at the same precision

    @property
    def known(self) -> bool:
        """Whether it can be compared with others."""
        return not self.failed and self.size is not None and self.kld is not None

    @property
    def distance(self) -> float:
        """The divergence by which it is compared with others."""
        return (self.kld if self.paired is None else self.paired) or 0.0

    @property
    def fit(self) -> bool:
        """Whether it may be shipped at all."""
        return self.sound and self.known and (self.kld or 0.0) <= figures.KLD_FIT[1]

    @property
    def closeness(self) -> tuple[float, float, str]:
        """The closest first, of equals the smallest; total, so that the order of builds changes
        nothing."""
        return self.distance, self.size or 0.0, self.name

    @property
    def smallness(self) -> tuple[float, float, str]:
        """The smallest first, of equals the closest."""
        return self.size or 0.0, self.distance, self.name


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The build to ship if ``aim`` matters most, the figure that says so, and the builds that are
    as fast."""

    aim: Aim
    build: str
    words: str
    unit: str = ""  # which of the device's units it runs on, where there are builds for several
    equals: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to ship to one device."""

    device: str
    where: str  # the device in words
    verdict: Literal["ship", "none fit", "nothing built"]
    picks: tuple[Pick, ...] = ()
    undecided: Mapping[Aim, str] = field(default_factory=dict)  # aim → why there is no pick
    reason: str = ""  # why there is nothing to ship, or nothing to choose
    closer: tuple[str, ...] = ()  # then: what in the recipes would come closer
    cautions: tuple[str, ...] = ()  # sentences
    front: tuple[str, ...] = ()  # smallest first
    # build → the closest one on the front that is ahead of it
    behind: Mapping[str, str] = field(default_factory=dict)
    line: str = ""  # the answer in one line
