"""Speed and memory of an artifact, through ``Runtime`` only, on the machine that runs this.

Runs in a fresh process, so that memory is the runtime's own. Every figure is a median over
repetitions after one warm-up; the prompt is the first tokens of the evaluation text, the same for
every runtime.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import statistics
import time
from pathlib import Path

from phipipe import backends, hardware, progress
from phipipe.backends.base import Runtime
from phipipe.evaluate import reports
from phipipe.evaluate.reports import Speed
from phipipe.steps import Inputs, Params

WARM = 4  # tokens of an answer that nobody times: by then, memory and threads are there
FEWEST, MOST = 3, 5  # runs where a recipe names no number
ALIKE = 0.05  # of their median, from the lowest to the highest: more runs would say the same


def measure(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: time ``inputs["artifact"]`` and write ``speed.json``.

    ``params``: backend, prompt_tokens, new_tokens, repetitions (None: ``FEWEST``, and up to
    ``MOST`` until they are ``ALIKE``), and api, the unit to run on (default "cpu"). Figures:

    - ``load_s``: opening the artifact and answering one token with one (files may be in the page
      cache)
    - ``ttft_s``: time to first token after a prompt of ``prompt_tokens``
    - ``prefill_tokens_per_s``: prompt_tokens / ttft_s
    - ``decode_tokens_per_s``: tokens after the first / time after the first
    - ``peak_memory_gib``: highest resident size of this process, interpreter and libraries included
    """
    import numpy as np

    tokens = np.load(inputs["baseline"] / "tokens.npy").ravel().tolist()
    prompt, new_tokens = tokens[: params["prompt_tokens"]], int(params["new_tokens"])
    start = time.perf_counter()
    runtime = backends.load(params["backend"]).open(inputs["artifact"], params.get("api", "cpu"))
    for _ in runtime.generate(prompt[:1], 1):
        pass
    load_s = time.perf_counter() - start
    samples = _samples(runtime, prompt, new_tokens, params["repetitions"])
    runtime.close()
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    metrics = {name: statistics.median(values) for name, values in columns.items()}
    metrics |= {"load_s": load_s, "peak_memory_gib": peak_bytes() / 2**30}
    report = Speed(
        metrics=metrics,
        spread={name: [min(values), max(values)] for name, values in columns.items()},
        host=host(),
        prompt_tokens=len(prompt),
        new_tokens=new_tokens,
    )
    reports.write(out, report)


def _samples(
    runtime: Runtime, prompt: list[int], new_tokens: int, repetitions: int | None
) -> list[dict[str, float]]:
    for _ in itertools.islice(runtime.generate(prompt, new_tokens), WARM):
        pass
    samples: list[dict[str, float]] = []
    most = repetitions or MOST
    while len(samples) < most:
        samples.append(_once(runtime, prompt, new_tokens))
        if repetitions is None and len(samples) >= FEWEST and _are_alike(samples):
            most = len(samples)
        progress.report(len(samples), most, "repetitions")
    return samples


def _are_alike(samples: list[dict[str, float]]) -> bool:
    columns = [[sample[name] for sample in samples] for name in samples[0]]
    return all(max(c) - min(c) <= ALIKE * statistics.median(c) for c in columns)


def _once(runtime: Runtime, prompt: list[int], new_tokens: int) -> dict[str, float]:
    start = time.perf_counter()
    stamps = [time.perf_counter() for _ in runtime.generate(prompt, new_tokens)]
    progress.generated(len(stamps))
    ttft_s = stamps[0] - start
    sample = {"ttft_s": ttft_s, "prefill_tokens_per_s": len(prompt) / ttft_s}
    if len(stamps) > 1:  # the model may end its text at once: then there is no decode speed
        sample["decode_tokens_per_s"] = (len(stamps) - 1) / (stamps[-1] - stamps[0])
    return sample


def host() -> dict[str, str | int | float | None]:
    """What a figure was measured on; part of the key of every measurement."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": hardware.cores(),
        "memory_gib": round(hardware.memory_bytes() / 2**30),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():  # platform.processor() is empty or just the architecture on Linux
        for line in info.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def peak_bytes() -> int:
    """Peak resident bytes of this process: VmHWM on Linux, peak working set on Windows, else the
    present size.

    Never ``ru_maxrss``: on Linux a child inherits its parent's across exec.
    """
    with contextlib.suppress(OSError):
        return hardware.memory_of(os.getpid())["VmHWM"]
    import psutil

    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))
