"""A run's profile in words: the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from phipipe.output.profiled import Profile, Timed, Wait
from phipipe.words import counted, human

UNKNOWN = "–"
OLD = "not recorded: an older phipipe made this run"
NOTHING_DONE = "everything was cached"


def lasted(value: float | None) -> str:
    """Seconds with one digit after the point: ``1,971.2``."""
    return UNKNOWN if value is None else f"{value:,.1f}"


def size(value: int | None) -> str:
    """Bytes in the unit that suits them."""
    return UNKNOWN if value is None else human(value)


def read(step: Timed) -> str:
    """``226 MiB for several``, ``1 MiB + 5 layers``: of layers that several steps shared, who read
    them, and who got them."""
    told = size(step.read_bytes) + (" for several" if step.layers_read else "")
    return f"{told} + {counted(step.layers_given, 'layer')}" if step.layers_given else told


def tokens(step: Timed) -> str:
    """``2,048 scored, 96 generated``."""
    counts = {"scored": step.scored_tokens, "generated": step.generated_tokens}
    return ", ".join(f"{n:,} {word}" for word, n in counts.items() if n) or UNKNOWN


def waited(step: Timed) -> float | None:
    """Seconds of all waits of ``step``."""
    return None if step.waits is None else round(sum(wait.seconds for wait in step.waits), 3)


def reasons(waits: Sequence[Wait] | None) -> str:
    """What was waited for; of several waits how long each was."""
    if not waits:
        return UNKNOWN
    if len(waits) == 1:
        return reason(waits[0])
    return ", ".join(f"{reason(wait)} {lasted(wait.seconds)} s" for wait in waits)


def reason(wait: Wait) -> str:
    """``baseline``, ``memory of quantize``, ``slot of quantize``, ``quantize (to be alone)``,
    ``toolchain torch``."""
    name = f"toolchain {wait.toolchain}" if wait.step is None else wait.step
    if wait.cause == "alone":
        return f"{name} (to be alone)"
    return f"{wait.cause} of {name}" if wait.cause in ("memory", "slot") else name


def facts(profile: Profile) -> dict[str, str]:
    """The run as a whole."""
    span = profile.span_seconds
    together = f"{_part(profile.overlap_seconds, span)} two or more at once"
    spent = [
        f"{lasted(profile.cpu_seconds)} s of CPU",
        f"{size(profile.read_bytes)} read",
        f"{size(profile.written_bytes)} written",
    ]
    return {
        "critical path": _path(profile),
        "steps at work": f"{_part(profile.busy_seconds, span)}; {together}",
        "whole run": f"{lasted(span)} s, {', '.join(spent)}",
    }


def _path(profile: Profile) -> str:
    names, took = profile.critical_path, profile.critical_seconds
    if names is None or took is None:
        done = [step for step in profile.steps if step.state != "cached"]
        return OLD if done else NOTHING_DONE
    return f"{_part(took, profile.span_seconds)}: {' → '.join(names)}"


def _part(value: float, whole: float) -> str:
    share = f" ({100 * value / whole:.0f} %)" if whole > 0 else ""
    return f"{lasted(value)} s{share}"
