"""Many steps through a real Dask scheduler, real workers and a shared folder, all on this machine.

    python benchmarks/cluster.py [--workers 8] [--steps 200] [--seconds 2] [--kills 0]

Prints, as JSON: how many of the sleeping steps' seconds the workers had side by side (efficiency), what a step costs
beyond its own time with one worker, and with ``--kills``, whether workers that were killed all the time left the same
digests as an unbroken run. Steps sleep and write small objects.
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
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
WHERE = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")


def sleep(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """Step: sleep, then write a small object."""
    time.sleep(params["seconds"])
    (out / "name.txt").write_text(f"{params['name']} {sorted(inputs)}")


class Farm:
    """A scheduler and workers on loopback; ``close`` ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = (
            folder,
            os.environ
            | {
                "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE))),
                "PHIPIPE_WORKER_PATH": str(HERE),
                "PHIPIPE_TOOLCHAIN": "current",
                "PHIPIPE_REMOTE": (folder / "shared").as_uri(),
            },
        )
        self.scheduler = self._start(
            "scheduler", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"
        )
        self.url = "dask://" + self._heard("scheduler", r"Scheduler at:\s+tcp://(\S+)")
        self.workers: list[subprocess.Popen[bytes]] = []
        self._made = 0

    def worker(self) -> subprocess.Popen[bytes]:
        self._made += 1
        name = f"worker{self._made}"
        self.environment["PHIPIPE_CACHE"] = str(self.folder / name)
        process = self._start(name, "phipipe", "worker", "--scheduler", self.url)
        self.workers.append(process)
        return process

    def wait_for(self, count: int) -> None:
        for i in range(self._made - count + 1, self._made + 1):
            self._heard(f"worker{i}", "(working) for")

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log, env=self.environment)

    def _heard(self, name: str, words: str) -> str:
        path = self.folder / f"{name}.log"
        while not (found := re.search(words, path.read_text("utf-8", "replace"))):
            time.sleep(0.1)
        return found[1]

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def plan(steps: int, seconds: float, chains: int = 0) -> Any:
    """So many steps, independent of each other, or in ``chains`` in which each needs the one before."""
    from phipipe.backends.base import Step
    from phipipe.plan import Plan

    made = []
    for i in range(steps):
        needs = {"before": f"s{i - chains}"} if chains and i >= chains else {}
        params = {"name": f"s{i}", "seconds": seconds}
        made.append(Step(name=f"s{i}", runs="cluster:sleep", version=1, needs=needs, params=params, toolchain="torch"))
    build: Any = SimpleNamespace(name="many", recipe=SimpleNamespace(backend="none"))
    return Plan(build=build, device=None, api="cpu", on_target="false", steps=tuple(made))  # type: ignore[arg-type]


def run(farm: Farm, name: str, work: Any) -> tuple[float, dict[str, str]]:
    """Seconds, and what digest each step has."""
    from phipipe import cluster, schedule
    from phipipe.settings import Settings
    from phipipe.show import Silent
    from phipipe.store import Store

    os.environ["PHIPIPE_REMOTE"] = farm.environment["PHIPIPE_REMOTE"]
    start = time.perf_counter()
    store = Store(farm.folder / name)
    (done,) = schedule.attempt([work], store, Settings.read(), Silent(), None, engine=cluster.engine(farm.url))
    if done.error:
        raise done.error
    return time.perf_counter() - start, {name: result.stored.digest for name, result in done.results.items()}


def speed(workers: int, steps: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        farm = Farm(Path(folder))
        try:
            farm.worker()
            farm.wait_for(1)
            run(farm, "warm", plan(1, 0.01))
            alone, _ = run(farm, "one", plan(30, 0.02))
            for _ in range(workers - 1):
                farm.worker()
            farm.wait_for(workers - 1)
            run(farm, "warmer", plan(4 * workers, 0.6))
            together, _ = run(farm, "many", plan(steps, seconds))
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


def kills(count: int) -> dict[str, Any]:
    """Workers killed at random, each replaced, until ``count`` are dead; then the digests of an unbroken run."""
    import threading

    work, killed = plan(60, 0.5, chains=6), 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as quiet:
        farm, calm = Farm(Path(folder)), Farm(Path(quiet))
        try:
            for _ in range(4):
                farm.worker()
                calm.worker()
            farm.wait_for(4)
            ends: list[Any] = []
            while killed < count:
                name = f"client{killed}"
                client = threading.Thread(target=lambda name=name: ends.append(run(farm, name, work)))
                client.start()
                while client.is_alive() and killed < count:
                    time.sleep(random.uniform(1.5, 4))
                    victim = farm.workers.pop(random.randrange(len(farm.workers)))
                    victim.kill()
                    victim.wait()
                    killed += 1
                    farm.worker()
                client.join()
            broken, whole = run(farm, "last", work)[1], run(calm, "calm", work)[1]
        finally:
            farm.close()
            calm.close()
    return {"killed": killed, "same_digests": broken == whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--kills", type=int, default=0)
    asked = parser.parse_args()
    told = kills(asked.kills) if asked.kills else speed(asked.workers, asked.steps, asked.seconds)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    sys.modules["cluster"] = sys.modules["__main__"]
    main()
