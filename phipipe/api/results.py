"""How builds ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe import words
from phipipe.api import building, pages, show, workplace
from phipipe.api.figures import Figures
from phipipe.errors import PhipipeError
from phipipe.execution.results import Outcome
from phipipe.output import documents
from phipipe.output.documents import DoneStep
from phipipe.steps import Json
from phipipe.visible import visible

if TYPE_CHECKING:
    from phipipe.api.boards import Board
    from phipipe.api.packages import Package


class Result:
    """How one build ended.

    Attributes:
        name: the build's name.
        error: why it failed; None where it did not.
        seconds: how long it took.
    """

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.name = outcome.plan.build.name
        self.error = outcome.error
        self.seconds = outcome.seconds
        self._figures: Figures | None = None
        self._package: Package | None = None

    @property
    def ok(self) -> bool:
        """Whether it came to an end without a failure."""
        return self.error is None

    @property
    def cached(self) -> bool:
        """Whether everything was stored already."""
        return self.outcome.all_cached

    @property
    def figures(self) -> Figures:
        """What was measured; of a build that failed, as far as it came."""
        if self._figures is None:
            self._figures = Figures.of_outcome(self.outcome)
        return self._figures

    @property
    def steps(self) -> tuple[DoneStep, ...]:
        """The steps that were done, or had been: name, key, cached, bytes, seconds, peaks."""
        return tuple(show.outcome_json(self.outcome).steps)

    @property
    def package(self) -> Package | None:
        """The package; None where none was asked for, or where the build failed.

        Raises:
            SourceError: the package was changed since it was built.
        """
        from phipipe.api.packages import Package

        if self._package is None and self.outcome.package is not None:
            self._package = Package.open(self.outcome.package)
        return self._package

    def check(self) -> Result:
        """This result, if nothing failed.

        Raises:
            PhipipeError: why the build failed.
        """
        if self.error is not None:
            raise self.error
        return self

    def to_dict(self) -> Json:
        """The result as ``phipipe run --json`` prints it."""
        return documents.plain(show.outcome_json(self.outcome))

    @property
    def state(self) -> str:
        """``built``, ``cached`` or ``failed``."""
        return "failed" if self.error else "cached" if self.cached else "built"

    def __repr__(self) -> str:
        return f"<Result {self.name}: {self.state}>"

    def __str__(self) -> str:
        if self.error is not None:
            return visible(f"{show.heading(self.outcome.plan)}\n  failed: {self.error.message}")
        return visible(show.describe_outcome(self.outcome))

    def _repr_html_(self) -> str:
        head = pages.paragraph(f"{show.heading(self.outcome.plan)}: {self.state}")
        if self.error is not None:
            hint = pages.paragraph(f"try: {self.error.hint}") if self.error.hint else ""
            return head + pages.preformatted(self.error.message) + hint
        place = self.outcome.package
        return head + self.figures._repr_html_() + (pages.paragraph(str(place)) if place else "")


class Results:
    """How the builds of a run ended, in the order of the recipe.

    ``results["name"]`` is a build's result, ``results[0]`` the first one. Where the run has one
    build, ``package``, ``figures`` and ``steps`` are that build's.

    Attributes:
        board_page: the page of the board that a run of several builds writes; None where there is
            none.
    """

    def __init__(self, outcomes: Sequence[Outcome], board_page: Path | None = None) -> None:
        self._results = tuple(map(Result, outcomes))
        self.board_page = board_page
        self._board: Board | None = None

    def __getitem__(self, which: int | str) -> Result:
        if isinstance(which, str):
            return workplace.named(which, {result.name: result for result in self._results})
        return self._results[which]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    @property
    def names(self) -> list[str]:
        """The builds' names."""
        return [result.name for result in self._results]

    @property
    def single(self) -> Result:
        """The result of a run with one build.

        Raises:
            AttributeError: there are several.
        """
        if len(self) != 1:
            raise AttributeError(
                f"this run has {words.counted(len(self), 'build')}: take one of them, such as "
                f"results[{self.names[0]!r}]"
            )
        return self._results[0]

    @property
    def package(self) -> Package | None:
        """The package of a run with one build."""
        return self.single.package

    @property
    def figures(self) -> Figures:
        """The figures of a run with one build."""
        return self.single.figures

    @property
    def steps(self) -> tuple[DoneStep, ...]:
        """The steps of a run with one build."""
        return self.single.steps

    @property
    def packages(self) -> list[Package]:
        """The packages of all builds that came to one."""
        return [package for result in self if (package := result.package) is not None]

    @property
    def error(self) -> PhipipeError | None:
        """The worst failure; None where there is none."""
        return building.worst([result.error for result in self if result.error])

    @property
    def errors(self) -> dict[str, PhipipeError]:
        """The failures by their builds' names."""
        return {result.name: result.error for result in self if result.error}

    @property
    def board(self) -> Board:
        """The builds side by side.

        Raises:
            SourceError: they do not compare.
        """
        from phipipe.api.boards import Board

        if self._board is None:
            self._board = Board(self)
        return self._board

    def check(self) -> Results:
        """These results, if no build failed.

        Raises:
            PhipipeError: the worst failure.
        """
        if self.error is not None:
            raise self.error
        return self

    def to_dict(self) -> list[Json]:
        """The results as ``phipipe run --json`` prints them."""
        return [result.to_dict() for result in self]

    def __repr__(self) -> str:
        return f"<Results {', '.join(f'{r.name}: {r.state}' for r in self)}>"

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))

    def _repr_html_(self) -> str:
        return "".join(result._repr_html_() for result in self)
