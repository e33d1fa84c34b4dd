"""What a choice of widths came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phipipe.evaluate import gates
from phipipe.evaluate.answer_reports import Answers
from phipipe.evaluate.reports import Metrics, Verdict
from phipipe.execution.results import Outcome
from phipipe.recipe.build import Build
from phipipe.recipe.recipe import Recipe
from phipipe.steps import Json
from phipipe.tuning.aims import Aim
from phipipe.tuning.curve import Choice, Curve, Point
from phipipe.tuning.fit import Fit

NAMED = 5  # prompts that a sentence names
AS_IT_STANDS, SMALLEST, CHOSEN = "as it stands", "smallest", "chosen"


def verdicts(recipe: Recipe, metrics: Mapping[str, float]) -> list[Verdict]:
    """The gates of ``recipe`` on ``metrics``, by name; one on what is not among them fails, without
    a value."""
    return [
        gates.verdict(name, metrics.get(name), gate.model_dump(exclude_none=True))
        for name, gate in sorted(recipe.evaluate.gates.items())
    ]


def looping(recipe: Recipe, answers: Answers | None) -> tuple[int, ...]:
    """Lines of the prompts whose ``answers`` loop where the original's do not; none where a gate of
    ``recipe`` allows so many, or nobody was asked."""
    if answers is None:
        return ()
    gate = recipe.evaluate.gates.get("loops")
    allowed = 0.0 if gate is None or gate.max is None else gate.max
    if answers.metrics["loops"] <= allowed:
        return ()
    return tuple(reply.line for reply in answers.replies if reply.loops)


@dataclass(frozen=True, kw_only=True)
class Check:
    """Noise in one matrix: the mean KL divergence that was predicted, and the one measured."""

    name: str
    predicted: float
    measured: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A file that was built: ``what`` it is, and its figures on the text to choose by.

    ``choice`` is None for the recipe as it stands. ``predicted_kld`` was said before it was built.
    ``looping`` are prompts, by their lines, for which it is refused: its answers loop, and the
    original's do not.
    """

    what: str
    choice: Choice | None
    predicted: Point | None
    predicted_kld: float | None
    metrics: Mapping[str, float]
    stderr: Mapping[str, float]
    looping: Sequence[int] = ()

    @property
    def refusal(self) -> str:
        """Why it is not taken, whatever its figures; empty where nothing speaks against it."""
        if not self.looping:
            return ""
        shown = ", ".join(map(str, self.looping[:NAMED]))
        more = len(self.looping) - NAMED
        lines = f"{shown} and {more} more" if more > 0 else shown
        return f"its answers loop where the original's do not (prompts {lines})"

    @property
    def size_bytes(self) -> int:
        return round(self.metrics["size_gib"] * 2**30)

    @property
    def kld(self) -> float:
        return self.metrics["kld_mean"]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """All that was learned of ``build``: ``best`` of the ``trials``, its options ``quantize``, and
    its ``final`` evaluation on the recipe's own text."""

    build: Build
    aim: Aim
    limit_bytes: int | None
    base_bytes: int
    curve: Curve
    fit: Fit
    checks: Sequence[Check]
    trials: Sequence[Trial]
    best: Trial
    quantize: Mapping[str, Json]
    final: Outcome

    @property
    def metrics(self) -> Metrics:
        """The final figures."""
        found = self.final.load("evaluate", Metrics)
        assert found is not None
        return found

    @property
    def answers(self) -> Answers | None:
        """What the best file answers to prompts; None where nothing was asked."""
        return self.final.load("answers", Answers)

    def verdicts(self) -> list[Verdict]:
        """The recipe's gates on what was measured at the end; speed was not."""
        found: dict[str, float] = dict(self.metrics.metrics)
        found |= self.answers.metrics if self.answers else {}
        return verdicts(self.build.recipe, found)

    @property
    def failed(self) -> list[str]:
        """Gates that the best file does not pass, in words: `run` would refuse it."""
        return [gates.words(v) for v in self.verdicts() if v.value is not None and not v.passed]

    @property
    def unjudged(self) -> list[str]:
        """Gates on what only `run` measures."""
        return [verdict.metric for verdict in self.verdicts() if verdict.value is None]

    def predicted(self) -> list[tuple[int, float]]:
        """The predicted curve: bytes of a file, and its mean KL divergence in nats."""
        points = []
        for one in self.curve.points():
            whole = Point(size_bytes=one.size_bytes + self.base_bytes, loss=one.loss)
            points.append((whole.size_bytes + self.fit.beside(whole), self.fit.kld(whole.loss)))
        return points
