"""A run's events (see ``events``) as people read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from phipipe.package.figures import peaks
from phipipe.steps import Json
from phipipe.words import duration

Event = Mapping[str, Json]  # see ``events``


def line(event: Event) -> str:
    """An event for people, and when it was."""
    return f"{event['time']}  {words(event)}"


def words(event: Event) -> str:
    """An event for people."""
    kind, step = event["event"], event.get("step", "")
    sentences: dict[str, Callable[[], str]] = {
        "run_started": lambda: f"{event['command']}: {', '.join(event['builds']) or 'nothing'}",
        "step_started": lambda: f"{step}  runs: {event['why']}",
        "step_progress": lambda: _progress(event),
        "step_finished": lambda: _finished(event),
        "step_failed": lambda: (
            f"{step}  failed ({event['exit_code']}): {event['message']}{_hint(event)}"
        ),
        "toolchain_started": lambda: f"installing toolchain `{event['toolchain']}`",
        "toolchain_finished": lambda: _installed(event),
        "note": lambda: event["text"],
        "error": lambda: f"{event['message']}{_hint(event)}",
        "build_finished": lambda: _built(event),
        "run_finished": lambda: (
            f"ended with exit code {event['exit_code']} after {event['seconds']:.1f} s"
        ),
    }
    return sentences[kind]() if kind in sentences else json.dumps(dict(event))


def _progress(event: Event) -> str:
    said = f"{event['step']}  {event['done']} of {event['total']} {event['unit']}"
    share, left = event.get("share"), event.get("seconds_left")
    said += f", {100 * share:.0f} %" if share is not None else ""
    return said + (f", about {duration(left)} left" if left is not None else "")


def row(event: Event) -> dict[str, Json]:
    """How a step or a build ended, for a table."""
    state = "failed" if "exit_code" in event else "cached" if event.get("cached") else "done"
    seconds = event.get("seconds")
    resident, anonymous = (event.get(f"peak_{kind}_bytes") for kind in ("rss", "anon"))
    return {
        "what": event.get("step") or event["build"],
        "state": state,
        "seconds": None if seconds is None else round(seconds, 2),
        "peak_gib_anonymous": None if anonymous is None else round(anonymous / 2**30, 2),
        "peak_gib_resident": None if resident is None else round(resident / 2**30, 2),
        "why": (event.get("message") or "").partition("\n")[0] or None,
    }


def _finished(event: Event) -> str:
    if event["cached"]:
        origin = "  from the shared store" if event.get("shared") else ""
        return f"{event['step']}  cached  {event['key'][:12]}{origin}"
    where = f", on {event['machine']}" if event.get("machine") else ""
    return (
        f"{event['step']}  done    {event['key'][:12]}  {event.get('seconds', 0):.1f} "
        f"s{peaks(event)}{where}"
    )


def _installed(event: Event) -> str:
    ended = f"failed ({event['exit_code']})" if "exit_code" in event else "is ready"
    return f"toolchain `{event['toolchain']}` {ended} after {event['seconds']:.1f} s"


def _built(event: Event) -> str:
    if event["ok"]:
        place = f"  {event['package']}" if "package" in event else ""
        return f"{event['build']}  built in {event['seconds']:.1f} s{place}"
    return f"{event['build']}  failed ({event['exit_code']}): {event['message']}{_hint(event)}"


def _hint(event: Event) -> str:
    return f"\n  try: {event['hint']}" if event.get("hint") else ""
