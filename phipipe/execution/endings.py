"""How a step ended that did not end well: what happened, and what to do about it."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe import words
from phipipe.errors import PhipipeError, StepFailed, StepKilled, ToolchainError, decoded
from phipipe.settings import Settings
from phipipe.steps import Json
from phipipe.store import free_space

NO_MEMORY = re.compile(
    r"not enough memory|bad[_ ]?alloc|failed to allocate|cannot allocate memory|out of memory",
    re.IGNORECASE,
)
MORE_MEMORY = "close other programs, or build on a machine with more memory"
GPU_FULL = "OutOfMemoryError"  # PyTorch's name for it
ON_CPU = "PHIPIPE_COMPUTE=cpu computes in the machine's own memory"
KILLED = (-9, 137)  # exit codes of who gets SIGKILL
TAIL_BYTES = 16384
KEPT_LOGS = 50


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How ``step`` ended in the toolchain of that name, with a peak of so many resident bytes."""

    step: str
    toolchain: str
    settings: Settings
    peak_rss_bytes: int
    log: Path

    def died(self, code: int | None, *, ready: bool, verdict: str) -> PhipipeError:
        """Why there is no answer. ``ready``: whether the server was, before it ended with ``code``;
        ``verdict``: why we ended it, if we did."""
        if verdict:
            return StepKilled(
                f"step `{self.step}` was ended: {verdict} (peak {self._peak} resident)",
                hint=f"its log: {self.log}",
            )
        if not ready and code is not None and code > 0:
            last = "".join(_tail(self.log)[-1:]).strip()
            return cannot_start(self.toolchain, last, self.settings)
        if code in KILLED:
            return StepKilled(
                f"step `{self.step}` was killed by SIGKILL at {self._peak} resident: most likely "
                f"the system ran out of memory",
                hint=f"{MORE_MEMORY}; its log: {self.log}",
            )
        # a file mapped into memory: SIGBUS; or no room for an answer
        if free_space.is_full(free_space.of_steps(self.settings)):
            return self._no_room(f"it died ({_ending(code)})")
        return StepKilled(
            f"step `{self.step}` died ({_ending(code)}, peak {self._peak} resident)",
            hint=f"its log: {self.log}",
        )

    def failed(self, failure: Mapping[str, Json]) -> PhipipeError:
        """The step's own ``failure``, as it was answered, to be raised again as what it is."""
        message = str(failure["message"])
        if "error" in failure:
            return decoded(failure["error"], before=f"step `{self.step}`: ")
        last = _last_line(message)
        # First: what a full disk makes libraries say is easily taken for a lack of memory.
        if self._lacks_room(failure, message):
            return self._no_room(last or str(failure["kind"]))
        if _lacks_memory(failure, message):
            more = ON_CPU if failure["kind"] == GPU_FULL else MORE_MEMORY
            return StepKilled(
                f"step `{self.step}` ran out of memory at {self._peak} resident: "
                f"{last or failure['kind']}",
                hint=f"{more}; its log: {self.log}",
            )
        if "import" in failure and str(failure["import"]).partition(".")[0] != "phipipe":
            return _damaged(self.toolchain, last, self.settings)
        lines = _tail(self.log, before=str(failure["traceback"]))[-3:]
        before = "".join(f"\n  | {line}" for line in lines)
        return StepFailed(
            f"step `{self.step}` failed: {failure['kind']}: {last}{before}",
            hint=f"its log: {self.log}",
        )

    def _lacks_room(self, failure: Mapping[str, Json], message: str) -> bool:
        if failure.get("errno") in free_space.FULL or free_space.SAID.search(message):
            return True
        return bool(NO_MEMORY.search(message)) and free_space.is_full(
            free_space.of_steps(self.settings)
        )

    def _no_room(self, reason: str) -> PhipipeError:
        doing = f"step `{self.step}`"
        return free_space.error(free_space.of_steps(self.settings), doing=doing, reason=reason)

    @property
    def _peak(self) -> str:
        return words.gib(self.peak_rss_bytes)


def keep_log(folder: Path, logs: Path, step: str) -> Path:
    """Move the log of ``step`` from ``folder`` to ``logs``, where it stays; the oldest there go."""
    plain = re.sub(r"[^\w.-]+", "-", step)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{plain}-{uuid.uuid4().hex[:6]}.log"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        kept = Path(shutil.move(folder / "log.txt", logs / name))
        for old in sorted(logs.glob("*.log"))[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)
    except OSError:  # a full disk must not hide the failure itself
        return folder / "log.txt"
    return kept


def cannot_start(toolchain: str, reason: str, settings: Settings) -> ToolchainError:
    """The Python of ``toolchain`` is there, but does not run."""
    message = f"toolchain `{toolchain}` cannot be started: {reason}"
    return ToolchainError(message, hint=_repair(toolchain, settings))


def _damaged(toolchain: str, reason: str, settings: Settings) -> ToolchainError:
    message = f"toolchain `{toolchain}` is damaged: {reason}"
    if settings.use_current:
        message = (
            f"this Python has not what toolchain `{toolchain}` needs (PHIPIPE_TOOLCHAIN "
            f"is `current`): {reason}"
        )
    return ToolchainError(message, hint=_repair(toolchain, settings))


def _repair(toolchain: str, settings: Settings) -> str:
    if settings.use_current:
        return f"pip install 'phipipe[{toolchain}]', or unset PHIPIPE_TOOLCHAIN"
    return f"phipipe toolchain install {toolchain} --force"


def _lacks_memory(failure: Mapping[str, Json], message: str) -> bool:
    has_words = failure["kind"] == "MemoryError" or bool(NO_MEMORY.search(message))
    return has_words or failure.get("returncode") in KILLED


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}" if code is None or code < 256 else f"exit code {code:#x}"


def _last_line(message: str) -> str:
    return "".join(message.strip().splitlines()[-1:])


def _tail(log: Path, before: str = "") -> list[str]:
    """The last lines of a log, up to where ``before`` begins."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - len(before) - TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    head = text.rpartition(before)[0] if before and before in text else text
    return [line.rstrip() for line in head.splitlines() if line.strip()]
