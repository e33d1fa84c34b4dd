"""What was measured of a build, by the names of the metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from phipipe.api import pages
from phipipe.evaluate.answer_reports import AnswerFigures, Answers
from phipipe.evaluate.reports import Baseline, Metrics, Scored, Speed, Vision
from phipipe.execution.results import Outcome
from phipipe.package import figures
from phipipe.package.description import Description

HEAD = ("metric", "value", "reads as")


class Figures(Mapping[str, float]):
    """Figures of a build: ``figures["kld_mean"]``. ``print(figures)`` shows them with units.

    The names are those of gates in recipes. Values are in the units of reports: GiB, seconds,
    tokens per second, shares from 0 to 1.

    Attributes:
        stderr: the standard errors, by the same names, where there are any.
        spread: the lowest and the highest of the repetitions, where there were some.
    """

    def __init__(
        self,
        metrics: Metrics | None,
        speed: Speed | None,
        baseline: Scored | None,
        vision: Vision | None,
        answers: AnswerFigures | None = None,
    ) -> None:
        fidelity = metrics or Metrics(metrics={})  # a device that gives no logits
        self._rows = figures.fidelity_table(fidelity, speed, baseline, vision, answers)
        self._values: dict[str, float] = {
            **fidelity.metrics,
            **(vision.metrics if vision else {}),
            **(answers.metrics if answers else {}),
            **(speed.metrics if speed else {}),
        }
        self.stderr: Mapping[str, float] = {
            **fidelity.stderr,
            **(answers.stderr if answers else {}),
        }
        self.spread: Mapping[str, Sequence[float]] = dict(speed.spread) if speed else {}

    @classmethod
    def of_outcome(cls, done: Outcome) -> Figures:
        """Everything that was measured of a build, also of one that failed after it."""
        return cls(
            done.fidelity,
            done.load("measure", Speed),
            done.load("baseline", Baseline),
            done.load("vision-evaluate", Vision),
            done.load("answers", Answers),
        )

    @classmethod
    def of_manifest(cls, manifest: Description) -> Figures:
        """What a package says of itself."""
        fidelity = manifest.fidelity
        return cls(
            fidelity, manifest.speed, fidelity.baseline, fidelity.vision, fidelity.generation
        )

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def to_dict(self) -> dict[str, float]:
        """The values by their names."""
        return dict(self._values)

    def __repr__(self) -> str:
        return f"<Figures {', '.join(f'{name}={value:.4g}' for name, value in self.items())}>"

    def __str__(self) -> str:
        return figures.plain_table(self._rows)

    def _repr_html_(self) -> str:
        rows = [(row.title, f"{row.value} {row.unit}".rstrip(), row.reads_as) for row in self._rows]
        return pages.table(HEAD, rows)
