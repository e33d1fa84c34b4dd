"""The plans of a whole recipe file: what is wrong with any variant is said of all of them at
once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phipipe import backends, failures
from phipipe.errors import PhipipeError
from phipipe.hub.take import Original
from phipipe.planning import preparation, sampled, targets, tokenizers
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.recipe.build import Build
from phipipe.recipe.source import Source


class ReadOnce:
    """Reads each source once for any number of builds; one that cannot be had is not asked for
    again."""

    def __init__(self) -> None:
        self._answers: dict[tuple[Source, Path | None], Original | PhipipeError] = {}

    def __call__(self, source: Source, folder: Path) -> Original:
        """As ``tokenizers.original``."""
        at = (source, folder if source.paths else None)
        if at not in self._answers:
            try:
                self._answers[at] = tokenizers.original(source, folder)
            except PhipipeError as error:
                self._answers[at] = error
        answer = self._answers[at]
        if isinstance(answer, PhipipeError):
            raise answer
        return answer


def planned(
    path: Path, sets: Sequence[str] = (), only: Sequence[str] = (), *, elsewhere: bool = False
) -> list[Plan]:
    """Plans of all builds of the file ``path``; nothing starts before every one of them is known to
    be possible.

    Raises:
        PhipipeError: all that is wrong, as one error: as ``targets.checked``; SourceError as
            ``preparation.prepare``. Models are not looked at as long as the file itself is wrong.
    """
    builds, error = loading.gather(path, sets=sets, only=only, options=backends.OptionsOf())
    if error:
        raise failures.as_one([error, *targets.problems(builds)])
    return prepared(builds, elsewhere=elsewhere)


def prepared(builds: Sequence[Build], *, elsewhere: bool = False) -> list[Plan]:
    """Plans of all ``builds``; nothing starts before every one of them is known to be possible.

    Raises:
        PhipipeError: all that is wrong, as one error.
    """
    plans, errors, read = [], list[PhipipeError](), ReadOnce()
    for build in builds:
        try:
            plans.append(preparation.prepare(build, read, elsewhere=elsewhere))
        except PhipipeError as failure:
            errors.append(failure)
    if errors:
        raise failures.as_one(errors)
    return sampled.comparable(plans)
