"""Parent side of ``phipipe chat``: starts the conversation's process, watches its memory, says how
it ended."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from phipipe import hardware
from phipipe.errors import Interrupted, PhipipeError, StepKilled, ToolchainError, decoded
from phipipe.execution.endings import NO_MEMORY
from phipipe.execution.watch import memory_of
from phipipe.processes import interrupts
from phipipe.processes.children import kill_tree, python_command, tree
from phipipe.sandbox import limited
from phipipe.settings import Settings, child_environment
from phipipe.steps import Json
from phipipe.words import GIB

SAMPLE_S = 0.2
PRESSES, PRESSES_S = 3, 5.0  # of Ctrl-C, and how long they count: who does not listen is killed
MORE_MEMORY = "close other programs, or use a machine with more memory"
SERVE = "from phipipe.chat.serve import serve; serve()"
LOG, REQUEST, RESPONSE = "log.txt", "request.json", "response.json"


def hold(python: Path, request: Mapping[str, Json], settings: Settings, call: str = SERVE) -> int:
    """Hold the conversation of ``request`` (see ``chat.serve``) in ``python``, on our own stdin,
    stdout and stderr.

    ``call`` is what the process does.

    Returns:
        The chat's exit code.

    Raises:
        PhipipeError: the one that the chat raised; StepKilled if it was ended, by us or by the
            system.
    """
    with tempfile.TemporaryDirectory(prefix="phipipe-chat-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        (home / REQUEST).write_text(json.dumps(dict(request)), "utf-8")
        environment = environment_in(home, settings)
        # what starts with them held back takes them when it is ready: see chat.serve
        interrupts.hold_back()
        try:
            process = subprocess.Popen(
                python_command(python, call, name), cwd=home, env=environment
            )
        except OSError as error:
            interrupts.take()
            raise unstartable(error, request) from None
        watch = _Watch(process, settings)
        try:
            interrupts.take()
            watch.wait()
        finally:
            watch.kill()
        return _ended(home, process.returncode, watch.verdict, request)


@dataclass
class _Watch:
    """Waits for the chat and looks on; ``verdict`` says why we ended it."""

    process: subprocess.Popen[bytes]
    settings: Settings
    verdict: str = ""
    _presses: list[float] = field(default_factory=list)

    def wait(self) -> None:
        """Until it has ended, or has to."""
        limit = memory_limit(self.settings)
        while self.process.returncode is None and not self.verdict:
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(SAMPLE_S)
                self.verdict = limit.verdict(self.process.pid)
            except KeyboardInterrupt:  # the chat itself decides what Ctrl-C means
                self._pressed()

    def kill(self) -> None:
        """End what is left of it."""
        if self.process.returncode is not None:
            return
        # what it started; it is in our own group, since the terminal is its
        kill_tree(self.process.pid)
        self.process.kill()
        self.process.wait()

    def _pressed(self) -> None:
        now = time.monotonic()
        self._presses = [*(at for at in self._presses if now - at < PRESSES_S), now]
        if len(self._presses) >= PRESSES:
            raise Interrupted("stopped: the chat did not listen to Ctrl-C, and was killed")


class MemoryLimit(NamedTuple):
    """What a chat may take, and who says so."""

    limit_bytes: int
    words: str

    def verdict(self, pid: int) -> str:
        """Why the chat in the process ``pid`` has to end; empty where it need not."""
        taken = 0
        for member in tree(pid):
            with contextlib.suppress(psutil.Error, OSError):  # it is gone meanwhile
                taken += memory_of(member)[1]
        return f"it took more memory than {self.words}" if taken > self.limit_bytes else ""


def memory_limit(settings: Settings) -> MemoryLimit:
    """What this machine has, or the less that the user allows."""
    limit, chosen_gib = hardware.memory_bytes(), settings.memory_limit_gib
    if chosen_gib is not None and chosen_gib * GIB < limit:
        return MemoryLimit(int(chosen_gib * GIB), f"PHIPIPE_MEMORY_LIMIT_GIB={chosen_gib:g}")
    return MemoryLimit(limit, "this machine has")


def environment_in(home: Path, settings: Settings) -> dict[str, str]:
    """What a chat's process knows of our environment; its temporary files are in ``home``."""
    environment = child_environment(offline=True, keep_path=settings.use_current)
    return environment | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(home))


def unstartable(error: OSError, request: Mapping[str, Json]) -> ToolchainError:
    """The system does not start a chat's process."""
    return ToolchainError(
        f"toolchain `{request['toolchain']}` cannot be started: {error.strerror}",
        hint=_repair(request),
    )


def _ended(home: Path, code: int, verdict: str, request: Mapping[str, Json]) -> int:
    try:
        response: dict[str, Json] = json.loads((home / RESPONSE).read_text("utf-8"))
    except (OSError, ValueError):
        raise died(home, code, verdict, request) from None
    if "error" not in response:
        return int(response["code"])
    raise decoded(response["error"])


def died(home: Path, code: int, verdict: str, request: Mapping[str, Json]) -> PhipipeError:
    """Why a chat's process ended with ``code`` and without a last word; ``verdict`` is why we
    ended it."""
    if verdict:
        return StepKilled(f"the chat was ended: {verdict}", hint=MORE_MEMORY)
    name = limited.ending(code)
    if name == "SIGINT":
        return Interrupted()
    log = home / LOG
    tail = log.read_bytes()[-16384:].decode("utf-8", "replace") if log.is_file() else None
    if tail is None and code > 0:
        return ToolchainError(
            f"toolchain `{request['toolchain']}` cannot be started ({name})", hint=_repair(request)
        )
    if name == "SIGKILL" or (tail and NO_MEMORY.search(tail)):
        return StepKilled(
            f"the chat was ended ({name}): most likely the system ran out of memory",
            hint=MORE_MEMORY,
        )
    return StepKilled(
        f"the package's runtime crashed ({name})", hint=f"phipipe verify {request['folder']}"
    )


def _repair(request: Mapping[str, Json]) -> str:
    return f"phipipe toolchain install {request['toolchain']} --force"
