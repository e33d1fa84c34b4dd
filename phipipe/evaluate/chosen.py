"""The windows that a step scores: all, or in a random order until they are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phipipe.evaluate import sampling
from phipipe.evaluate.reports import Sampling
from phipipe.evaluate.sequential import Enough, Rows, standard_error
from phipipe.steps import Params

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """``windows``, by their places in the text, in the order in which they are scored.

    Attributes:
        enough: whether those scored so far are; None: never before the last.
        cap: the most tokens that the recipe allows; 0: what was scored needs no words.
        told: how many windows of the text have figures of their own in the report.
    """

    windows: Sequence[int]
    enough: Enough | None = None
    cap: int = 0
    told: int = 0

    def first(self, count: int) -> Chosen:
        """The same of the first ``count`` windows alone."""
        windows = self.windows[:count]
        enough = self.enough and replace(self.enough, count=len(windows))
        return replace(self, windows=windows, enough=enough)

    def is_enough(self, rows: Rows) -> bool:
        """Whether no more windows are needed than those that ``rows`` belong to."""
        return self.enough is not None and self.enough(rows)

    def save(self, path: Path, positions: Mapping[str, Floats]) -> None:
        """Write the divergence and what the true tokens cost at each of ``positions`` to ``path``,
        float32 [windows, positions] each; with ``windows``, int32 [windows], where their places in
        the text do not follow from their number."""
        kld, nll, before = (positions[name] for name in ("kld", "nll", "nll_baseline"))
        if self.enough is None:
            np.savez(path, kld=kld, nll=nll, nll_baseline=before)
            return
        places = np.asarray(self.windows[: len(kld)], np.int32)
        np.savez(path, kld=kld, nll=nll, nll_baseline=before, windows=places)

    def sampling(self, positions: Mapping[str, Floats], window: int) -> Sampling | None:
        """What the report says of the windows that were scored; None where it says nothing.

        Args:
            positions: of the windows scored, in their order, float32 [windows, positions]; see
                ``reference.score``.
            window: tokens of one.
        """
        if not self.told:
            return None
        scored = self.windows[: len(positions["kld"])]
        kept = [at for at, i in enumerate(scored) if i < self.told]
        means = {name: _means(name, positions)[kept] for name in sampling.FIGURES}
        report = Sampling(
            tokens=len(scored) * window,
            cap=len(self.windows) * window,
            reason=self._reason(len(scored), window),
            windows=[int(scored[at]) for at in kept],
            figures={name: [float(value) for value in values] for name, values in means.items()},
        )
        rows = [{name: values[i] for name, values in positions.items()} for i in range(len(scored))]
        mean, error = standard_error(rows)
        if self.enough is None or len(rows) < 2 or not mean > 0:
            return report
        return report.model_copy(update={"relative_error": error / mean})

    def _reason(self, scored: int, window: int) -> str:
        if self.enough is None:
            return "asked"
        if scored < len(self.windows):
            return "decided"
        return "cap" if scored == self.cap // window else "text"


def of(params: Params, count: int, window: int) -> Chosen:
    """The windows that ``params`` of a step choose among ``count`` of ``window`` tokens.

    ``until``: ``tokens``, the most that are scored, and ``gates`` that have to be decided.
    ``told``: how many tokens of the text have figures of their own though all are scored.
    """
    until = params.get("until")
    if until is None:
        told = min(int(params.get("told", 0)) // window, count)
        return Chosen(windows=range(count), told=told)
    cap = int(until["tokens"])
    windows = sampling.order(min(count, max(1, cap // window)))
    return Chosen(
        windows=windows,
        enough=Enough(gates=until["gates"], count=len(windows)),
        cap=cap,
        told=len(windows),
    )


def _means(name: str, positions: Mapping[str, Floats]) -> npt.NDArray[np.float64]:
    values = positions["dp" if name == "dp_square" else name].astype(np.float64)
    means: npt.NDArray[np.float64] = (values**2 if name == "dp_square" else values).mean(-1)
    return means
