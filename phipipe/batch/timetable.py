"""A batch on a timetable: files for the engines that teams run already, each of which calls
``phipipe batch``.

A batch is safe to start at any time: what is stored is not done again, two at once share one cache
and one output folder, and ``latest`` moves only to what passed. So the files need no state and no
locks of their own.
"""

from __future__ import annotations

import datetime
import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.errors import RecipeError, StoreError
from phipipe.files import pages, user_paths
from phipipe.steps import Json

if TYPE_CHECKING:
    from cronsim import CronSim

MARK = "made by `phipipe schedule export`"  # a file with it may be written again
HINT = (
    "five fields, such as '0 2 * * *' (minute, hour, day of the month, month, day of the "
    "week), quoted for the shell"
)
DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
ALWAYS = {"minutes": range(60), "hours": range(24), "days": range(1, 32), "months": range(1, 13)}


@dataclass(frozen=True, kw_only=True)
class Job:
    """``words`` are those after ``phipipe``; ``program`` is what phipipe is started with;
    ``folder`` where. ``install`` is what pip gets on a machine without phipipe."""

    name: str
    at: str
    words: Sequence[str]
    program: Sequence[str]
    folder: Path
    out: Path
    install: str = ""

    @property
    def command(self) -> list[str]:
        return [*self.program, *self.words]


def parse(at: str, zone: datetime.tzinfo | None = None) -> CronSim:
    """The cron expression ``at``, five fields, from now on; by this machine's clock, or that of
    ``zone``.

    Raises:
        RecipeError: it is none; says which field is wrong.
    """
    from cronsim import CronSim, CronSimError

    try:
        if len(at.split()) != 5:
            raise CronSimError("Wrong number of fields")
        return CronSim(at, datetime.datetime.now(zone))
    except CronSimError as error:
        reason = str(error).removeprefix("Bad ")
        wrong = (
            f"its {reason} is wrong"
            if reason != str(error)
            else "it has another number of fields than five"
        )
        raise RecipeError(f"`{at}` is no cron expression: {wrong}", hint=HINT) from None


def name(text: str) -> str:
    """``text``, which becomes part of file names and of other engines' identifiers.

    Raises:
        RecipeError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text):
        raise RecipeError(
            f"a schedule cannot be called `{text}`",
            hint="letters, digits, - and _, such as --job nightly",
        )
    return text


def zone(name: str) -> datetime.tzinfo:
    """The timezone ``name`` of the IANA's.

    Raises:
        RecipeError: there is none.
    """
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        close = difflib.get_close_matches(name, zoneinfo.available_timezones(), 1)
        hint = f"--timezone {close[0] if close else 'Europe/Berlin'}"
        raise RecipeError(f"there is no timezone `{name}`", hint=hint) from None


def words(at: str, count: int = 3, zone: datetime.tzinfo | None = None) -> str:
    """When that is, and the next times by this machine's clock, or that of ``zone``."""
    cron = parse(at, zone)
    times = ", ".join(f"{time:%a %Y-%m-%d %H:%M}" for time in islice(cron, count))
    return f"{cron.explain()}; next {f'in {zone}' if zone else 'here'}: {times}"


def on_calendar(at: str) -> str:
    """The cron expression ``at`` in systemd's words (``OnCalendar=``).

    Raises:
        RecipeError: systemd cannot say it.
    """
    cron = parse(at)
    if not cron.day_and:
        hint = "two schedules, or one of the fields as *"
        raise RecipeError(
            f"`{at}` asks for days of the month or of the week; systemd would take both as one",
            hint=hint,
        )
    numbers = [n for n in cron.weekdays if isinstance(n, int) and n >= 0]
    if len(numbers) < len(cron.weekdays) or any(n < 0 for n in cron.days):
        raise RecipeError(
            f"`{at}` has a day that systemd cannot say", hint="use numbers, lists, ranges or steps"
        )
    week = sorted({DAYS[n] for n in numbers}, key=DAYS[1:].index)
    day = "" if len(week) == 7 else ",".join(week) + " "
    minutes, hours, days, months = (
        _listed(getattr(cron, name), whole) for name, whole in ALWAYS.items()
    )
    return f"{day}*-{months}-{days} {hours}:{minutes}:00"


def _listed(numbers: set[int], whole: range) -> str:
    return "*" if numbers == set(whole) else ",".join(f"{n:02d}" for n in sorted(numbers))


def _for_systemd(words: Sequence[str]) -> str:
    """Quoted as systemd.service(5) wants it."""
    escaped = (
        word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
        for word in words
    )
    return " ".join(f'"{word}"' for word in escaped)


def _for_cron(words: Sequence[str]) -> str:
    return shlex.join(words).replace("%", "\\%")  # a bare one ends the command


# format → name of the job → file → template
FORMATS: dict[str, Callable[[str], dict[str, str]]] = {
    "cron": lambda name: {f"{name}.cron": "batch/schedule-cron.j2"},
    "systemd": lambda name: {
        f"phipipe-{name}.service": "batch/schedule-service.j2",
        f"phipipe-{name}.timer": "batch/schedule-timer.j2",
    },
    "github-actions": lambda name: {
        f".github/workflows/phipipe-{name}.yml": "batch/schedule-github.yml.j2"
    },
    "airflow": lambda name: {
        f"phipipe_{name.replace('-', '_')}.py": "batch/schedule-airflow.py.j2"
    },
}


def files(kind: str, job: Job) -> dict[str, str]:
    """Path → text of what ``kind`` (one of ``FORMATS``) needs for ``job``.

    Raises:
        RecipeError: ``job.at`` is no cron expression, or one that ``kind`` cannot say.
    """
    environment = pages.environment()
    environment.filters |= {
        "shell": shlex.join,
        "cron": _for_cron,
        "systemd": _for_systemd,
        "repr": repr,
    }
    view: dict[str, Json] = {"job": job, "mark": MARK, "says": parse(job.at).explain()}
    if kind == "systemd":
        view["calendar"] = on_calendar(job.at)
    return {
        path: environment.get_template(name).render(view)
        for path, name in FORMATS[kind](job.name).items()
    }


def write(texts: dict[str, str], folder: Path) -> list[Path]:
    """Write ``texts`` below ``folder``; what an earlier call wrote there is replaced.

    Raises:
        StoreError: there is a file of somebody else's, or the disk takes none. Nothing is written
            then.
    """
    targets = {folder / path: text for path, text in texts.items()}
    try:
        for target in targets:
            if odd := user_paths.problem(target, user_paths.Kind.NEW_FILE):
                raise StoreError(
                    f"`{target}` {odd}", hint="move it away, or choose another --job or --write"
                )
            if target.exists() and MARK not in target.read_text("utf-8", "replace"):
                raise StoreError(
                    f"`{target}` was not {MARK}",
                    hint="move it away, or choose another --job or --write",
                )
        for target, text in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8", newline="\n")
    except OSError as error:
        raise StoreError(
            f"cannot write to `{folder}`: {error.strerror}", hint="choose another --write"
        ) from None
    return list(targets)
