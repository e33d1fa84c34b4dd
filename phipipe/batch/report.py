"""What a batch leaves to read: a table, ``batch.json``, JUnit's XML for CI systems, the board over
all artifacts.

``batch.json`` (``format`` 1) only ever grows: names that are there keep their meaning. Files appear
whole or not at all; ``batch.json`` comes last, so that whoever finds it finds the others.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from pathlib import Path

from phipipe import __version__, words
from phipipe.batch import folder, junit
from phipipe.batch import pages as batch_pages
from phipipe.batch.accept import Done
from phipipe.batch.pages import BOARDS
from phipipe.errors import Skipped
from phipipe.metrics import METRICS, Metric
from phipipe.output import batch, documents
from phipipe.package import figures
from phipipe.store import claims, files, free_space, refusals
from phipipe.store.records import Stored

TYPE = "phipipe-batch"
FORMAT = 1
STATES = ("built", "cached", "gated", "failed", "refused", "skipped")
SHOWN = tuple(METRICS[name] for name in ("size_gib", "kld_mean", "top1", "decode_tokens_per_s"))
NUMBERS = (*(metric.heading for metric in SHOWN), "time")  # columns of them


def exit_code(done: Sequence[Done]) -> int:
    """The highest of the builds' exit codes, 0 where all went well: what comes later in a build
    counts as worse."""
    return max(
        (d.error.exit_code for d in done if d.error and not isinstance(d.error, Skipped)), default=0
    )


def summary(
    done: Sequence[Done], out: Path, started: datetime.datetime, finished: datetime.datetime
) -> batch.Batch:
    """The content of ``batch.json``."""
    return batch.Batch(
        type=TYPE,
        format=FORMAT,
        version=__version__,
        started=started.isoformat(timespec="seconds"),
        finished=finished.isoformat(timespec="seconds"),
        exit_code=exit_code(done),
        states={state: sum(d.state == state for d in done) for state in STATES},
        recipes=list(dict.fromkeys(d.item.path.as_posix() for d in done)),
        builds=[_build(d, out) for d in done],
    )


def _build(done: Done, out: Path) -> batch.BatchBuild:
    stored, item = _package_of(done), done.item
    recipe = item.build.recipe if item.build else None
    return batch.BatchBuild(
        name=item.name,
        recipe=item.path.as_posix(),
        device=recipe.device if recipe else None,
        backend=recipe.backend if recipe else None,
        precision=recipe.precision if recipe else None,
        state=done.state,
        seconds=round(done.seconds, 3),
        digest=stored.digest if stored else None,
        version=done.version,
        package=f"{item.name}/{done.version}" if done.version else None,
        accepted=folder.latest(out / item.name) if item.build else None,
        size_bytes=stored.size_bytes if stored else None,
        metrics={
            name: value for name, value in sorted(done.metrics.items()) if math.isfinite(value)
        },
        before=dict(sorted(done.before.items())),
        compared=sorted(done.compared),
        regressions=[batch.Regression(**vars(one)) for one in done.regressions],
        error=None if done.error is None else batch.batch_error_of(done.error),
    )


def _package_of(done: Done) -> Stored | None:
    result = done.outcome.results.get("package") if done.outcome else None
    return result.stored if result else None


# --- the table


def table(done: Sequence[Done]) -> str:
    """One line per build with the change since the package accepted before, then what went
    wrong."""
    cells = rows(done)
    lines = [list(cells[0]), *(list(row.values()) for row in cells)] if cells else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ways = [">" if name in NUMBERS else "<" for name in lines[0]] if lines else []
    texts = [
        "  ".join(f"{text:{way}{n}}" for text, way, n in zip(line, ways, widths, strict=True))
        for line in lines
    ]
    return "\n".join([*(text.rstrip() for text in texts), "", total(done)])


def rows(done: Sequence[Done]) -> list[dict[str, str]]:
    """A row for each build; those in ``NUMBERS`` are to be set to the right."""
    return [_row(one) for one in done]


def total(done: Sequence[Done]) -> str:
    """How many builds ended how."""
    counted = [f"{n} {state}" for state in STATES if (n := sum(d.state == state for d in done))]
    return f"{words.counted(len(done), 'build')}: {', '.join(counted)}"


def _row(done: Done) -> dict[str, str]:
    took = done.seconds
    cells = {metric.heading: _cell(done, metric) for metric in SHOWN}
    time = f"{figures.number(took)} s" if took else "–"
    return {"build": done.item.name, "state": done.state, **cells, "time": time}


def _cell(done: Done, metric: Metric) -> str:
    """The figure, and its change where the one before was taken alike."""
    if metric.name not in done.metrics:
        return "–"
    value = done.metrics[metric.name]
    words = figures.shown(metric, value)
    shown = " ".join(words) if metric.is_size else words[0]
    if metric.name not in done.compared:
        return shown
    was = done.before[metric.name]
    if was == value:
        return f"{shown} (=)"
    if was <= 0 or value >= 10 * was:
        return f"{shown} (× {figures.number(value / was)})" if was > 0 else f"{shown} (was 0)"
    return f"{shown} ({100 * (value / was - 1):+.1f} %)"


# --- files


def write(done: Sequence[Done], out: Path, title: str, summary: batch.Batch) -> None:
    """Write ``junit.xml``, the board and ``batch.json`` into ``out``, each atomically.

    Raises:
        StoreError: the folder cannot be written.
    """
    pages, kept = batch_pages.boards(batch_pages.entries(done, out), out, title)
    texts = {
        "junit.xml": junit.render(done, summary.started),
        **pages,
        "batch.json": dump(summary),
    }
    with refusals.guard(out, remedy=free_space.KEEP_OUT), claims.claim(out, ".report.") as aside:
        for name, text in texts.items():
            written, target = aside / Path(name).name, out / name
            target.parent.mkdir(exist_ok=True)
            files.write(written, text.encode())
            written.replace(target)
        for old in (out / BOARDS).iterdir() if (out / BOARDS).is_dir() else ():
            if f"{BOARDS}/{old.name}" not in kept and old.suffix in (".html", ".json"):
                old.unlink()


def dump(summary: batch.Batch) -> str:
    """The text of ``batch.json``."""
    text = json.dumps(documents.plain(summary), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n"
