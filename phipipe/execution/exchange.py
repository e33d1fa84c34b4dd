"""What a step server is asked and what it answers: files in the folder of a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.execution.watch import UNKNOWN, Expected
from phipipe.processes.company import Seat
from phipipe.settings import Settings
from phipipe.steps import Json


@dataclass(frozen=True, kw_only=True)
class Request:
    """A step to be run: ``runs`` names its function (``steps``), ``expected`` is what it takes,
    ``memory_bytes`` the estimate of the plan."""

    step: str
    runs: str
    inputs: Mapping[str, Path]
    params: Mapping[str, Json]
    expected: Expected = UNKNOWN
    layers: str | None = None  # the input through whose layers it goes with others, in this
    seat: Seat | None = None
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step took. Peaks are of the server and its children; seconds include starting it.

    ``peak_rss_bytes`` comes from the kernel and is exact for the server itself; ``peak_anon_bytes``
    (memory that no file backs) is sampled, so a spike between two looks can be missed.
    Where the system does not tell the two apart, they are the same. ``log`` lies in the request's
    folder. ``spent``: CPU seconds, bytes from and to disks (``spending``), tokens, and the GPU that
    it computed on (``gpu``), by name, as far as they are known; the server's own start counts with
    its first step.
    """

    seconds: float
    peak_rss_bytes: int
    peak_anon_bytes: int
    log: Path
    spent: Mapping[str, Json]

    def usage(self) -> dict[str, Json]:
        """For the step's record."""
        return {
            "seconds": round(self.seconds, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_anon_bytes": self.peak_anon_bytes,
            **self.spent,
        }


def write(request: Request, folder: Path, settings: Settings) -> None:
    """Lay ``request`` into ``folder`` for a server to find; an older answer goes."""
    content = {
        "runs": request.runs,
        "inputs": {name: str(path.absolute()) for name, path in request.inputs.items()},
        "params": dict(request.params),
        "layers": request.layers,
        "seat": request.seat and request.seat.as_json(),
        "memory_bytes": request.memory_bytes,
        "path": [str(root) for root in settings.server_path],
    }
    (folder / "request.json").write_text(json.dumps(content), "utf-8")
    (folder / "response.json").unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Json] | None:
    """The answer in ``folder``; None where there is none: the server died."""
    try:
        value: dict[str, Json] = json.loads((folder / "response.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value
