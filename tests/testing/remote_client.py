"""One of several machines, and plans of light steps for them.

``python -m testing.remote_client CACHE LOG STEPS SECONDS`` runs a chain of them.

Each step that is really done leaves a line in LOG. Where results are shared, the environment says.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from phipipe import progress
from phipipe.cli.listeners import Silent
from phipipe.execution import dispatch
from phipipe.execution.manner import Engine, Manner
from phipipe.execution.results import Outcome
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.steps import Step
from phipipe.store.store import Store

STEPS = {"work": "testing.remote_client:work", "rest": "testing.remote_client:rest"}


def work(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    log = os.open(os.environ["REMOTE_CLIENT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{params['name']}\n".encode())
    os.close(log)
    time.sleep(params["seconds"])
    (out / "same.bin").write_bytes(b"the same in all of them" * 1000)
    (out / "folder").mkdir()
    (out / "folder" / "own.txt").write_text(
        params["name"] + "".join(p.name for p in inputs.values())
    )


def rest(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """Step: take a while, say how far it is, write something."""
    for i in range(params["tenths"]):
        time.sleep(0.1)
        progress.report(i + 1, params["tenths"], "tenths")
    (out / "made.txt").write_text(
        params["name"] + "".join(p.joinpath("made.txt").read_text() for p in inputs.values())
    )


def chain(steps: int, seconds: float = 0.0) -> Plan:
    """Steps s0, s1 …, each of which needs the one before."""
    made = [
        Step(
            name=f"s{i}",
            runs="testing.remote_client/work",
            version=1,
            needs={"before": f"s{i - 1}"} if i else {},
            params={"name": f"s{i}", "seconds": seconds},
        )
        for i in range(steps)
    ]
    return planned(*made)


def planned(*steps: Step) -> Plan:
    recipe = SimpleNamespace(backend="none", cache=SimpleNamespace(keep=None))
    build: Any = SimpleNamespace(name="chain", recipe=recipe)
    plan: Any = Plan(build=build, device=None, api="cpu", on_target="false", steps=steps)  # type: ignore[arg-type]
    return plan  # type: ignore[no-any-return]


class Noted(Silent):
    """Keeps what a listener is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reports: list[tuple[str, int, int, str]] = []

    def progress(self, label: str, done: int, total: int, unit: str) -> None:
        self.reports.append((label, done, total, unit))

    def note(self, line: str) -> None:
        self.lines.append(line)


def run(cache: Path, plan: Plan) -> tuple[Outcome, list[str]]:
    """The outcome of ``plan`` in ``cache``, and what was said."""
    done, heard = attempt(cache, plan, None)
    return done, heard.lines


def attempt(cache: Path, plan: Plan, engine: Engine | None) -> tuple[Outcome, Noted]:
    heard = Noted()
    manner = Manner(jobs=2, engine=engine)
    (done,) = dispatch.attempt([plan], Store(cache), Settings.read(), heard, manner)
    return done, heard


if __name__ == "__main__":
    sys.modules["testing.remote_client"] = sys.modules["__main__"]
    os.environ["REMOTE_CLIENT_LOG"] = sys.argv[2]
    count, seconds = int(sys.argv[3]), float(sys.argv[4])
    outcome, lines = run(Path(sys.argv[1]), chain(count, seconds))
    print(*lines, sep="\n", file=sys.stderr)
    sys.exit(0 if outcome.error is None else 1)
