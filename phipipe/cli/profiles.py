"""What `runs show --profile` says to people, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.cli import answers, files, tables
from phipipe.cli.messages import echo, note
from phipipe.profiling import words

if TYPE_CHECKING:
    from phipipe.execution.past_runs import Run
    from phipipe.output.profiled import Profile, Timed

NUMBERS = ("start s", "wall s", "CPU s", "read", "written", "peak", "waited s")


def show(run: Run, *, as_json: bool, page: Path | None) -> None:
    """Print where the time of ``run`` went; with ``page`` write it there, too.

    Raises:
        RecipeError: the page cannot be written.
        StoreError: there is no room.
    """
    from phipipe.profiling import profile

    made = profile.profile(run)
    if page is not None:
        from phipipe.profiling import page as pages

        files.save(page, pages.render(made))
    if as_json:
        answers.give(made)
    else:
        echo(text(made))
    if page is not None:
        note(f"page: {page}")


def text(profile: Profile) -> str:
    """The whole profile."""
    head = f"{profile.id}  {profile.command}, {profile.state}"
    table = tables.table([_cells(step) for step in profile.steps], right=NUMBERS)
    return f"{head}\n\n{table}\n\n{tables.outline(words.facts(profile))}"


def _cells(step: Timed) -> dict[str, str]:
    return {
        "what": f"toolchain {step.name}" if step.is_toolchain else step.name,
        "": "*" if step.critical else "",  # on the critical path
        "state": step.state,
        "start s": words.lasted(step.start_seconds),
        "wall s": words.UNKNOWN if step.state == "cached" else words.lasted(step.seconds),
        "CPU s": words.lasted(step.cpu_seconds),
        "read": words.read(step),
        "written": words.size(step.written_bytes),
        "peak": words.size(step.peak_anon_bytes),
        "tokens": words.tokens(step),
        "waited s": words.lasted(words.waited(step)) if step.waits else words.UNKNOWN,
        "for": words.reasons(step.waits),
    }
