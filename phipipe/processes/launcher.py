"""Programs that work on a folder for minutes, alone, and never longer than we live: how ``uv`` is
run.

``run`` starts a launcher, a process in a session of its own, which starts the programs, each in one
of its own too. The launcher's stdin is a pipe whose other end is ours. When that ends, we want no
more or are dead, be it by ``kill -9``: then the launcher ends the program with all that it started,
and removes what is half made. Until it is gone it keeps a lock, so whoever comes next knows when
nobody is in the folder any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from filelock import FileLock, Timeout

from phipipe.errors import Interrupted
from phipipe.processes.children import kill_tree, own_group, python_command

LOOK_S = 0.1
HEARTBEAT_S = 60.0  # what takes minutes shall not look like a hang
GRACE_S = 10.0  # that a launcher has to end its program and remove what it made
OUTPUT_BYTES = 65536  # of what a program says, the last ones are kept
# for the launcher, which imports what we import; not for its programs
OWN_PATH = ("PYTHONPATH", "PYTHONHOME")

Beat = Callable[[float], None]  # hears, now and then, how many seconds have passed
Stop = Callable[[], bool]  # whether somebody wants the end
Hear = Callable[[str], None]  # gets each line that a program says on stderr, while it runs


@dataclass(frozen=True, kw_only=True)
class Job:
    """Programs to run one after another, until one fails.

    ``busy`` is locked while they run; ``remove`` goes if we end before they do; ``temporary`` is a
    folder for what they need meanwhile, and always goes; ``environment`` is all that they get.
    """

    commands: Sequence[Sequence[str]]
    environment: Mapping[str, str]
    busy: Path
    remove: Sequence[Path]
    temporary: Path


def run(job: Job, beat: Beat, stop: Stop, hear: Hear = lambda line: None) -> tuple[int, str]:
    """Exit code of the last program that ran, and the last of what all of them said on stderr.

    On Windows ``hear`` hears nothing.

    Raises:
        Interrupted: ``stop`` said so. Then, and after any other exception, nothing of ``job`` runs
            any more.
    """
    theirs, ours = os.pipe()
    with tempfile.TemporaryFile() as output:
        try:
            process = _start(job, theirs, output)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        try:
            code = _wait(process, beat, stop, _Reader(output, hear))
        finally:
            os.close(ours)
            _end(process)
        output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT_BYTES))
        return code, output.read().decode("utf-8", "replace")


def _start(job: Job, stdin: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """The launcher of ``job``."""
    described = json.dumps(
        {
            "commands": [[*command] for command in job.commands],
            "busy": str(job.busy),
            "remove": [str(path) for path in job.remove],
            "temporary": str(job.temporary),
        }
    )
    own_path = {name: os.environ[name] for name in OWN_PATH if name in os.environ}
    return subprocess.Popen(
        python_command(
            Path(sys.executable),
            "from phipipe.processes.launcher import launch; launch()",
            described,
        ),
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=output,
        env={**job.environment, **own_path},
        **own_group(),
    )


class _Reader:
    """Hands on whole lines of what is being written to ``output``, without moving the place where
    it is written."""

    def __init__(self, output: IO[bytes], hear: Hear) -> None:
        self._output, self._hear, self._at = output, hear, 0

    def look(self) -> None:
        """Hand on the lines that came since the last look."""
        while hasattr(os, "pread"):
            read = os.pread(self._output.fileno(), OUTPUT_BYTES, self._at)
            whole = read[: read.rfind(b"\n") + 1]
            if len(read) == OUTPUT_BYTES and not whole:  # a line that no person wrote
                whole = read
            if not whole:
                return
            self._at += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                self._hear(line)


def _wait(process: subprocess.Popen[bytes], beat: Beat, stop: Stop, reader: _Reader) -> int:
    start = heard = time.monotonic()
    while True:
        try:
            return process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            reader.look()
            if stop():
                raise Interrupted("stopped") from None
            if (now := time.monotonic()) - heard >= HEARTBEAT_S:
                beat(now - start)
                heard = now


def _end(process: subprocess.Popen[bytes]) -> None:
    """The launcher ends by itself now; if it does not, it is ended."""
    try:
        process.wait(GRACE_S)
    except BaseException as error:
        kill_tree(process.pid)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


@contextmanager
def alone(lock: Path, waits: Beat, stop: Stop) -> Iterator[None]:
    """While this lasts, nobody else has ``lock``. ``waits`` hears at once if it has to be waited
    for, then each minute.

    Raises:
        Interrupted: ``stop`` said so.
        OSError: the file cannot be made.
    """
    held, start, heard = FileLock(lock), time.monotonic(), None
    while True:
        try:
            held.acquire(timeout=0 if heard is None else LOOK_S)
            break
        except Timeout:
            if stop():
                raise Interrupted("stopped") from None
            now = time.monotonic()
            if heard is None or now - heard >= HEARTBEAT_S:
                waits(now - start)
                heard = now
    try:
        yield
    finally:
        held.release()


def strays(program: str, folder: Path) -> Iterator[psutil.Process]:
    """Processes of ``program`` that were told to work on ``folder``, and whose launcher was killed,
    too."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if Path(words[0]).stem == program and any(str(folder) in word for word in words[1:]):
            yield process


def end_strays(program: str, folder: Path) -> None:
    """End ``strays``, with all that they started."""
    processes = list(strays(program, folder))
    for process in processes:
        kill_tree(process.pid)
    psutil.wait_procs(processes, GRACE_S)


# In the launcher


def launch() -> None:
    """Do the job in ARGV[1] and end as its last program did; when stdin ends, at once."""
    job = json.loads(sys.argv[1])
    home = Path(job["temporary"])
    with FileLock(job["busy"]):
        home.mkdir(exist_ok=True)
        launched = _Launched([Path(path) for path in job["remove"]], home)
        threading.Thread(target=launched.listen, daemon=True).start()
        code = launched.serve(job["commands"])
        shutil.rmtree(home, ignore_errors=True)
    sys.exit(code)


class _Launched:
    """Programs, one after another, and who ends them."""

    def __init__(self, remove: Sequence[Path], home: Path) -> None:
        self._remove, self._home = remove, home
        self._changing = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def serve(self, commands: Sequence[Sequence[str]]) -> int:
        environment = {name: value for name, value in os.environ.items() if name not in OWN_PATH}
        environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self._home))
        for command in commands:
            with self._changing:
                process = self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    **own_group(),
                )
            code = process.wait()
            with self._changing:  # never to be had again if it was ``listen`` that ended it
                pass
            if code:
                if code < 0:  # somebody has killed it, and not what it had started
                    kill_tree(process.pid)
                return code if code > 0 else 128 - code
        return 0

    def listen(self) -> None:
        """Until stdin ends."""
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with self._changing:  # for ever: nothing is started any more
            if self._process is not None and self._process.returncode is None:
                kill_tree(self._process.pid)
                self._process.wait()
            for path in (*self._remove, self._home):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                    missing_ok=True
                )
            os._exit(1)
