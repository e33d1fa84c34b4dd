"""Where the time of a run went, as a page: one file that opens without a network and has no
scripts.

Everything that a user, a model or a tool wrote is text, which the template escapes. The page's own
security policy forbids it to load anything.
"""

from __future__ import annotations

from phipipe.board import colours, origin
from phipipe.files import pages
from phipipe.output.profiled import Profile, Timed
from phipipe.profiling import words
from phipipe.profiling.chart import chart
from phipipe.visible import in_template
from phipipe.words import counted, shortened


def render(profile: Profile) -> str:
    """The page's text."""
    environment = pages.environment(in_template, is_html=True)
    drawn = chart(profile)
    return environment.get_template("profiling/page.html.j2").render(
        series=list(colours.SERIES.items()),
        short=shortened,
        title=f"Run {profile.id}",
        made=origin.words(),
        about=f"phipipe {profile.command}, {profile.state}, begun {profile.started}",
        builds=profile.builds,
        facts=words.facts(profile),
        chart=drawn,
        size=counted(len(profile.steps), "step"),
        rows=[_row(step) for step in profile.steps],
        terms=_TERMS,
    )


_TERMS = {
    "critical": (
        "★ Critical path",
        "The steps that set the run’s length: the last one to end, what it had waited for last, "
        "and so on back to the begin. If a step without ★ gets faster, the run ends no earlier, "
        "unless the two share cores.",
    ),
    "seconds": (
        "Wall, and own",
        "From the step’s begin to its end. “Own” is the part in the step’s process. In the rest, "
        "phipipe checked the bytes that the step reads, and stored those that it made.",
    ),
    "cpu": (
        "CPU",
        "Seconds of all processor cores that the step’s process and its children used, in "
        "programs and in the system. Much less than the wall time: it waited for the disk, or for "
        "cores that others had.",
    ),
    "disk": (
        "Read and written",
        "Bytes that the system moved from and to disks for the step. What the system’s own cache "
        "still held was not read. “For several” and “+ 32 layers”: steps that went through a "
        "model’s layers side by side; the first read them, the second got them. Their memory "
        "counts in the peak of each.",
    ),
    "peak": (
        "Peak",
        "The most memory at once that is the step’s own: a machine must have it. Files that are "
        "mapped into memory come on top, and the system drops them where memory is short.",
    ),
    "waited": (
        "Waited",
        "For a result: from when all others that the step needs were there. Then for its "
        "toolchain, for memory, for a slot (a place among the steps that run at once), or to be "
        "alone, as measurements are. Named is the step that had it until then.",
    ),
}


def _row(step: Timed) -> dict[str, object]:
    return {
        "step": step,
        "state": "installed" if step.is_toolchain and step.state == "done" else step.state,
        "start": words.lasted(step.start_seconds),
        "wall": words.UNKNOWN if step.state == "cached" else words.lasted(step.seconds),
        "work": words.lasted(step.work_seconds),
        "cpu": words.lasted(step.cpu_seconds),
        "read": words.read(step),
        "written": words.size(step.written_bytes),
        "peak": words.size(step.peak_anon_bytes),
        "tokens": words.tokens(step),
        "waited": words.lasted(words.waited(step)) if step.waits else words.UNKNOWN,
        "reasons": words.reasons(step.waits),
    }
