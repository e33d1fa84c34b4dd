"""Which of the files that were built is taken, or why none is."""

from __future__ import annotations

from collections.abc import Sequence

from phipipe.errors import TargetError
from phipipe.tuning.results import Trial
from phipipe.words import counted


def closest(name: str, trials: Sequence[Trial], limit_bytes: int) -> Trial:
    """The closest of ``trials`` of the build ``name`` that has at most so many bytes and is not
    refused.

    Raises:
        TargetError: there is none.
    """
    fitting = [trial for trial in trials if trial.size_bytes <= limit_bytes]
    taken = [trial for trial in fitting if not trial.refusal]
    if taken:
        return min(taken, key=lambda trial: trial.kld)
    if fitting:
        raise _refused(name, fitting, "fit")
    nearest = min(trials, key=lambda trial: trial.size_bytes)
    raise TargetError(
        f"{name}: the file has {nearest.size_bytes:,} bytes, and {limit_bytes:,} were asked for",
        hint="let more files be built (--builds 4), or allow more",
    )


def smallest(name: str, trials: Sequence[Trial], passing: Sequence[Trial], left: int) -> Trial:
    """The smallest of the ``trials`` that are ``passing``; ``left``: how many more could be built.

    Raises:
        TargetError: none passes.
    """
    if passing:
        return min(passing, key=lambda trial: trial.size_bytes)
    refused = [trial for trial in trials if trial.refusal]
    if refused:
        raise _refused(name, refused, "pass the gates")
    best = min(trials, key=lambda trial: trial.kld)
    built = counted(len(trials), "file")
    more = ", or let more files be built (--builds)" if not left else ""
    raise TargetError(
        f"{name}: of {built} none passes the gates; the closest has a mean KL divergence of "
        f"{best.kld:.3g}",
        hint=f"loosen `evaluate.gates`{more}",
    )


def _refused(name: str, files: Sequence[Trial], what: str) -> TargetError:
    best = min(files, key=lambda trial: trial.kld)
    return TargetError(
        f"{name}: all files that {what} are refused; the closest: {best.refusal}",
        hint="allow more bytes or files (--size, --builds), or a share of loops with "
        "`evaluate.gates.loops`; --no-answers chooses without asking",
    )
