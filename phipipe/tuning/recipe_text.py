"""The chosen widths as an ordinary recipe, with the evidence as comments."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from phipipe.metrics import METRICS
from phipipe.package import answer_words, figures
from phipipe.planning.tuning import SELECTION_TOKENS
from phipipe.recipe import written
from phipipe.recipe.build import Build, paths_of
from phipipe.recipe.places import Where
from phipipe.steps import Json
from phipipe.tuning.results import Trial, Tuned
from phipipe.visible import one_line
from phipipe.words import human

_TUNED = re.compile(r"(.*)-tuned(?:-([1-9][0-9]{0,5}))?")
MOST_CHARACTERS = 80  # of a recipe's name


def name_of(builds: Sequence[Build], sets: Sequence[str] = ()) -> str:
    """What the recipe of the widths chosen for ``builds`` is called: as the one variant or the
    recipe that they are of, with `-tuned` (again: `-tuned-2`, `-tuned-3` …), so that its packages
    have folders of their own. A name that is among ``sets``, what the user laid on the recipe,
    stays."""
    (first, *others) = builds
    if any(text.partition("=")[0] == "name" for text in sets):
        return first.recipe.name
    name = first.recipe.name if others else first.name
    before = _TUNED.fullmatch(name)
    suffix = f"-tuned-{int(before[2] or 1) + 1}" if before else "-tuned"
    return (before[1] if before else name)[: MOST_CHARACTERS - len(suffix)] + suffix


def compose(tuned: Sequence[Tuned], name: str, folder: Path, command: str) -> str:
    """A recipe for ``folder``, called ``name``, that builds what ``command`` chose for each of
    ``tuned``."""
    lines = [f"# Written by: {one_line(command)}"]
    for one in tuned:
        lines += [f"# {line}".rstrip() for line in evidence(one)]
    data = [_data(one, name, folder) for one in tuned]
    whole = data[0] if len(data) == 1 else _matrix(tuned, data)
    return "\n".join(lines) + "\n" + written.text(whole, short=True)


def evidence(tuned: Tuned) -> Iterator[str]:
    """What was measured, line by line."""
    metrics, errors = tuned.metrics.metrics, tuned.metrics.stderr
    yield ""
    yield (
        f"{tuned.build.name}: mean KL divergence on {SELECTION_TOKENS} tokens of the calibration "
        "text that nothing is learned from"
    )
    if tuned.limit_bytes is not None:
        yield f"  at most {human(tuned.limit_bytes)} ({tuned.limit_bytes:,} bytes)"
    yield from (f"  {_row(one, tuned)}" for one in tuned.trials)
    if tuned.best.choice is None:
        yield "  the recipe keeps its own widths: no file that fits is closer"
    kld = f"{metrics['kld_mean']:.4g} ± {errors.get('kld_mean', 0.0):.1g}"
    same = f"same first choice {100 * metrics['top1']:.1f} %"
    yield f"  that file on the evaluation text: {kld}, {same}"
    yield from (f"  {line}" for line in _answers(tuned))
    yield from (f"  gate failed: {line}" for line in tuned.failed)
    if tuned.unjudged:
        yield f"  gates that `run` judges: {', '.join(tuned.unjudged)}"


def _answers(tuned: Tuned) -> Iterator[str]:
    """What the best file answers to prompts, beside the original; nothing where nobody asked."""
    answers = tuned.answers
    if answers is None:
        return
    shown = (
        f"{METRICS[name].title} {' '.join(figures.shown(METRICS[name], value)).rstrip()}"
        for name, value in answers.metrics.items()
    )
    yield f"answers: {', '.join(shown)}"
    yield from answer_words.remarks(answers)


def _row(trial: Trial, tuned: Tuned) -> str:
    told = f"{trial.what}: {human(trial.size_bytes)}, {trial.kld:.4g}"
    if trial.predicted_kld is not None:
        told += f" (predicted {trial.predicted_kld:.4g})"
    if trial is tuned.best:
        return f"{told}  <- taken"
    if trial.refusal:
        return f"{told}, refused: {trial.refusal}"
    if tuned.limit_bytes is not None and trial.size_bytes > tuned.limit_bytes:
        return f"{told}, too large by {trial.size_bytes - tuned.limit_bytes:,} bytes"
    return told


def _data(tuned: Tuned, name: str, folder: Path) -> dict[str, Json]:
    """The recipe of one build, as its own file ``name`` in ``folder`` would have it."""
    recipe = tuned.build.recipe
    data: dict[str, Json] = recipe.model_dump(mode="json", exclude_unset=True)
    data |= {"name": name, "quantize": dict(tuned.quantize)}
    for where, path in paths_of(recipe):
        _put(data, where, _moved(tuned.build.folder / Path(path).expanduser(), folder))
    return {key: value for key, value in data.items() if value != {}}


def _put(data: dict[str, Json], where: Where, value: str) -> None:
    *outer, last = where
    for key in outer:
        data = data[str(key)]
    data[str(last)] = value


def _moved(path: Path, folder: Path) -> str:
    """``path`` as seen from ``folder``; on another drive as it is."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return path.as_posix()


def _matrix(tuned: Sequence[Tuned], data: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """Several builds as one recipe: what all share, and a variant for each."""
    shared = {
        key: value
        for key, value in data[0].items()
        if all(key in one and one[key] == value for one in data)
    }
    prefix = f"{tuned[0].build.recipe.name}-"
    variants = [
        {
            "name": one.build.name.removeprefix(prefix),
            **{key: value for key, value in own.items() if key not in shared},
        }
        for one, own in zip(tuned, data, strict=True)
    ]
    return {**shared, "matrix": variants}
