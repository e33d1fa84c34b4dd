"""Many steps through a real Dask scheduler, real workers and a shared folder, all on this machine.

    python benchmarks/cluster.py [--workers 8] [--steps 200] [--seconds 2] [--kills 0]

Prints, as JSON: how many of the sleeping steps' seconds the workers had side by side (efficiency),
what a step costs beyond its own time with one worker, and with ``--kills``, whether processes that
are killed all the time leave the same digests as an unbroken run. Steps sleep and write small
objects.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

HERE = Path(__file__).parent
STEPS = {"sleep": "cluster:sleep"}


def sleep(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """Step: sleep, then write a small object."""
    time.sleep(params["seconds"])
    (out / "name.txt").write_text(f"{params['name']} {sorted(inputs)}", "utf-8")


class Farm:
    """A scheduler and workers on loopback; ``close`` ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self._made = folder, 0, 0
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE))),
            "PHIPIPE_WORKER_PATH": str(HERE),
            "PHIPIPE_TOOLCHAIN": "current",
            "PHIPIPE_REMOTE": (folder / "shared").as_uri(),
        }
        self.workers: list[subprocess.Popen[bytes]] = []
        self.schedule()

    @property
    def url(self) -> str:
        return f"dask://127.0.0.1:{self.port}"

    def schedule(self) -> None:
        words = ("--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        self.scheduler = self.start("scheduler", "-m", "distributed.cli.dask_scheduler", *words)
        self.port = int(self._heard("scheduler", r"Scheduler at:\s+tcp://127.0.0.1:(\d+)"))

    def worker(self) -> None:
        self._made += 1
        name = f"worker{self._made}"
        self.workers.append(self.start(name, "-m", "phipipe", "worker", "--scheduler", self.url))

    def wait_for(self, count: int) -> None:
        for i in range(self._made - count + 1, self._made + 1):
            self._heard(f"worker{i}", "(working) for")

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        environment = {**self.environment, "PHIPIPE_CACHE": str(self.folder / name)}
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *words], stdout=log, stderr=log, env=environment
            )

    def _heard(self, name: str, words: str) -> str:
        path = self.folder / f"{name}.log"
        while not (line := re.search(words, path.read_text("utf-8", "replace"))):
            time.sleep(0.1)
        return line[1]

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it started."""
    if process.poll() is None:
        first = psutil.Process(process.pid)
        for one in (first, *first.children(recursive=True)):
            one.kill()
    process.wait()


def plan(steps: int, seconds: float, chains: int = 0, turn: int = 0) -> Any:
    """So many steps, independent of each other, or in ``chains`` in which each needs the one
    before."""
    # Here, since every step's process imports this module.
    from phipipe.planning.plan import Plan
    from phipipe.steps import Step

    built = []
    for i in range(steps):
        needs = {"before": f"s{i - chains}"} if chains and i >= chains else {}
        params = {"name": f"{turn} {i}", "seconds": seconds}
        built.append(
            Step(
                name=f"s{i}",
                runs="cluster/sleep",
                version=1,
                needs=needs,
                params=params,
                toolchain="torch",
            )
        )
    recipe = SimpleNamespace(backend="none", cache=SimpleNamespace(keep=None))
    build: Any = SimpleNamespace(name="many", recipe=recipe)
    no_device: Any = None
    return Plan(build=build, device=no_device, api="cpu", on_target="false", steps=tuple(built))


def attempt(cache: Path, work: Any, url: str | None, jobs: int | None = None) -> dict[str, str]:
    """What digest each step has, done on the cluster at ``url``, or here."""
    from phipipe.cli.listeners import Silent
    from phipipe.cluster import client as cluster
    from phipipe.execution import dispatch
    from phipipe.execution.manner import Manner
    from phipipe.settings import Settings
    from phipipe.store.store import Store

    manner = Manner(jobs=jobs, engine=cluster.engine(url) if url else None)
    (done,) = dispatch.attempt([work], Store(cache), Settings.read(), Silent(), manner)
    if done.error:
        raise done.error
    return {name: result.stored.digest for name, result in done.results.items()}


def run(farm: Farm, name: str, work: Any) -> float:
    """Seconds that ``work`` takes on the farm."""
    os.environ["PHIPIPE_REMOTE"] = farm.environment["PHIPIPE_REMOTE"]
    start = time.perf_counter()
    attempt(farm.folder / name, work, farm.url)
    return time.perf_counter() - start


def speed(workers: int, steps: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        farm = Farm(Path(folder))
        try:
            farm.worker()
            farm.wait_for(1)
            run(farm, "warm", plan(1, 0.01))
            alone = run(farm, "one", plan(30, 0.02))
            for _ in range(workers - 1):
                farm.worker()
            farm.wait_for(workers - 1)
            run(farm, "warmer", plan(4 * workers, 0.6))
            together = run(farm, "many", plan(steps, seconds))
        finally:
            farm.close()
    return {
        "overhead_ms_per_step": round(1000 * (alone / 30 - 0.02)),
        "workers": workers,
        "steps": steps,
        "seconds_per_step": seconds,
        "wall_s": round(together, 1),
        "efficiency": round(steps * seconds / workers / together, 3),
    }


SHAPE: dict[str, Any] = {"steps": 60, "seconds": 0.5, "chains": 6}  # of what is disturbed


def kills(count: int) -> dict[str, Any]:
    """Kill workers, schedulers and clients at random, start them again, until ``count`` are dead
    and the work is done. Then the digests of unbroken runs on this machine."""
    killed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        farm = Farm(Path(folder))
        try:
            digests = _disturb(farm, count, killed)
        finally:
            farm.close()
        names = ("PHIPIPE_WORKER_PATH", "PHIPIPE_TOOLCHAIN")
        os.environ |= {name: farm.environment[name] for name in names}
        os.environ.pop("PHIPIPE_REMOTE", None)
        whole = [
            attempt(Path(folder) / f"calm{i}", plan(**SHAPE, turn=i), None, 8)
            for i in range(len(digests))
        ]
    return {"killed": killed, "clients_done": len(digests), "same_digests": digests == whole}


def _disturb(farm: Farm, count: int, killed: Counter[str]) -> list[dict[str, str]]:
    """The digests of each client that has finished, after which another one started with new
    work."""
    for _ in range(4):
        farm.worker()
    farm.wait_for(4)
    digests: list[dict[str, str]] = []
    turn, client = 0, _client(farm, 0)
    try:
        while killed.total() < count or client.poll() is None:
            if client.poll() is not None:
                digests += _digests(farm, turn)
                turn = len(digests)
                client = _client(farm, turn)
            time.sleep(random.uniform(1, 3))
            if killed.total() < count:
                client = _kill(farm, client, turn, killed)
        return [*digests, *_digests(farm, turn)]
    finally:
        end(client)


def _kill(farm: Farm, client: Any, turn: int, killed: Counter[str]) -> Any:
    """Kill something and start it again; the client that there is then."""
    what = random.choices(("worker", "scheduler", "client"), (8, 1, 2))[0]
    killed[what] += 1
    if what == "client":
        end(client)
        return _client(farm, turn)
    if what == "worker":
        end(farm.workers.pop(random.randrange(len(farm.workers))))
        farm.worker()
        return client
    end(farm.scheduler)
    farm.schedule()
    farm.wait_for(4)  # workers come back by themselves
    end(client)  # it has ended, or is about to
    return _client(farm, turn)


def _client(farm: Farm, turn: int) -> subprocess.Popen[bytes]:
    return farm.start(
        f"client{turn}", str(HERE / "cluster.py"), "--client", farm.url, "--turn", str(turn)
    )


def _digests(farm: Farm, turn: int) -> list[dict[str, str]]:
    """The digests that the client of this ``turn`` wrote, none if it failed: then the same work is
    started again."""
    path = farm.folder / f"client{turn}" / "digests.json"
    return [json.loads(path.read_text("utf-8"))] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--turn", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.client:
        cache = Path(os.environ["PHIPIPE_CACHE"])
        digests = attempt(cache, plan(**SHAPE, turn=asked.turn), asked.client)
        (cache / "digests.tmp").write_text(json.dumps(digests), "utf-8")
        (cache / "digests.tmp").replace(cache / "digests.json")
        return
    figures = (
        kills(asked.kills) if asked.kills else speed(asked.workers, asked.steps, asked.seconds)
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    sys.modules["cluster"] = sys.modules["__main__"]
    main()
