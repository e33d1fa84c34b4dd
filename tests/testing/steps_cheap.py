"""Steps for the tests of workers: each does one thing that real steps do, or that may go wrong in
them."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

from phipipe import progress
from phipipe.errors import GateFailed, Interrupted
from phipipe.processes import gpu

Inputs = Mapping[str, Path]
Params = Mapping[str, Any]

SLEEPER = "import time; time.sleep(300)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"

calls = 0  # of `count`, in this process


def copy(inputs: Inputs, out: Path, params: Params) -> None:
    (out / "copy.txt").write_text(inputs["text"].read_text() + params["more"])


def nothing(inputs: Inputs, out: Path, params: Params) -> None:
    pass


def count(inputs: Inputs, out: Path, params: Params) -> None:
    global calls
    calls += 1
    (out / "count.json").write_text(json.dumps([calls, os.getpid()]))


def environment(inputs: Inputs, out: Path, params: Params) -> None:
    """What this process knows: variables, arguments, import path, working folder, temporary
    folder."""
    import tempfile

    told = {
        "env": dict(os.environ),
        "argv": sys.orig_argv,
        "path": sys.path,
        "cwd": str(Path.cwd()),
    }
    (out / "environment.json").write_text(json.dumps(told | {"temp": tempfile.gettempdir()}))
    print(dict(os.environ))


def import_one(inputs: Inputs, out: Path, params: Params) -> None:
    __import__(params["module"])


def speak(inputs: Inputs, out: Path, params: Params) -> None:
    """Print from Python, from C's buffered output, from a descriptor and from a child."""
    print(params["word"], "python é")
    print(params["word"], "error", file=sys.stderr)
    library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    library.printf(f"{params['word']} native\n".encode())
    os.write(1, f"{params['word']} descriptor\n".encode())
    subprocess.run([sys.executable, "-c", f"print('{params['word']} child')"], check=True)


def ask(inputs: Inputs, out: Path, params: Params) -> None:
    (out / "answer.txt").write_text(repr(sys.stdin.read()))


def report(inputs: Inputs, out: Path, params: Params) -> None:
    for i in range(params["total"]):
        progress.report(i + 1, params["total"], "windows")
        time.sleep(params["pause_s"])


def leave_files(inputs: Inputs, out: Path, params: Params) -> None:
    import tempfile

    Path(tempfile.mkdtemp(), "big").write_text("left behind")
    Path("here").write_text("left behind")


def allocate(inputs: Inputs, out: Path, params: Params) -> None:
    """Touch ``mib`` of memory, in pieces, and hold it for a moment, saying so again and again."""
    held = [bytearray(os.urandom(1) * 2**20) for _ in range(params["mib"])]
    moments = round(params.get("hold_s", 0) * 20)
    for moment in range(moments):
        progress.report(moment + 1, moments, "moments")
        time.sleep(0.05)
    del held


def allocate_in_child(inputs: Inputs, out: Path, params: Params) -> None:
    subprocess.run(
        [sys.executable, "-c", f"x = b'x' * ({params['mib']} << 20); {SLEEPER}"], check=True
    )


def allocate_until_killed(inputs: Inputs, out: Path, params: Params) -> None:
    held = []
    while True:
        held.append(bytearray(b"x" * 2**22))
        time.sleep(0.005)


def out_of_memory(inputs: Inputs, out: Path, params: Params) -> None:
    raise MemoryError("no room for 12 GiB")


def fail(inputs: Inputs, out: Path, params: Params) -> None:
    print("the tensor is crooked")
    raise ValueError("cannot go on")


def fail_a_gate(inputs: Inputs, out: Path, params: Params) -> None:
    class Worse(GateFailed):
        """A narrower failure, which the parent does not know."""

    raise Worse("`kld_mean` is 0.3", hint="use int8")


def be_told_to_stop(inputs: Inputs, out: Path, params: Params) -> None:
    raise Interrupted(exit_code=143)


def wrap_an_import_failure(inputs: Inputs, out: Path, params: Params) -> None:
    try:
        import phipipe_has_no_such_package  # noqa: F401
    except ImportError as error:
        raise RuntimeError("could not import the model class") from error


def raise_os_error(inputs: Inputs, out: Path, params: Params) -> None:
    raise OSError(params["errno"], os.strerror(params["errno"]))


def kill_itself(inputs: Inputs, out: Path, params: Params) -> None:
    print("last words", flush=True)
    os.kill(os.getpid(), params["signal"])
    time.sleep(60)


def exit_at_once(inputs: Inputs, out: Path, params: Params) -> None:
    os._exit(params["code"])


def run_a_tool(inputs: Inputs, out: Path, params: Params) -> None:
    subprocess.run([sys.executable, "-c", f"import os; os._exit({params['code']})"], check=True)


def crash(inputs: Inputs, out: Path, params: Params) -> None:
    ctypes.string_at(0)


def sleep(inputs: Inputs, out: Path, params: Params) -> None:
    _mark(inputs, [])
    time.sleep(params["seconds"])


def work(inputs: Inputs, out: Path, params: Params) -> None:
    """Busy, and silent, for ``seconds`` of a core."""
    end = time.process_time() + params["seconds"]
    while time.process_time() < end:
        sum(range(10_000))


def run_and_wait(inputs: Inputs, out: Path, params: Params) -> None:
    subprocess.run(params["command"], check=True)


def write(inputs: Inputs, out: Path, params: Params) -> None:
    (out / "file").write_bytes(os.urandom(1) * (params["mib"] << 20))


def count_tokens(inputs: Inputs, out: Path, params: Params) -> None:
    progress.scored(params["scored"])
    progress.generated(params["generated"])


def use_gpu(inputs: Inputs, out: Path, params: Params) -> None:
    """Named by what it was foretold to take; what is released is the environment's to say."""
    gpu.uses(
        gpu.Use(
            name=f"GPU of {gpu.foretold_bytes()} bytes",
            peak_bytes=lambda: 7,
            release=lambda: os.environ.update(GPU="released"),
        )
    )


def gpu_was_released(inputs: Inputs, out: Path, params: Params) -> None:
    assert os.environ["GPU"] == "released"


def spawn(inputs: Inputs, out: Path, params: Params) -> None:
    """Children, one in a session of its own, and a grandchild; all of them, and we, ignore
    SIGTERM."""
    if params.get("stubborn", True):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    family = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); "
        f"{STUBBORN}"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", family]),
        subprocess.Popen([sys.executable, "-c", STUBBORN], start_new_session=True),
    ]
    if params.get("hold", False):
        _mark(inputs, children, wait_s=0.5)
        hold_the_interpreter(inputs, out, params)
    _mark(inputs, children, wait_s=0.5)
    time.sleep(300)


def fork_and_die(inputs: Inputs, out: Path, params: Params) -> None:
    """A forked child inherits our pipes; then we are gone without a word."""
    if os.fork() == 0:
        time.sleep(300)
        os._exit(0)
    os._exit(3)


def hold_the_interpreter(inputs: Inputs, out: Path, params: Params) -> None:
    """Native code that keeps the interpreter's lock: no other thread of this process runs any
    more."""
    ctypes.PyDLL(None).usleep(120_000_000)


def unpickle(inputs: Inputs, out: Path, params: Params) -> None:
    import pickle

    pickle.loads(b"cposix\nsystem\n(S'touch " + str(out / "canary").encode() + b"'\ntR.")


def use_a_process_pool(inputs: Inputs, out: Path, params: Params) -> None:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        (out / "sum.txt").write_text(str(sum(pool.map(abs, [-1, -2]))))


def connect(inputs: Inputs, out: Path, params: Params) -> None:
    import socket

    if params.get("resolve"):
        socket.getaddrinfo(params["host"], params["port"])
    kind = socket.SOCK_DGRAM if params.get("datagram") else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as connection:
        connection.settimeout(5)
        if params.get("datagram"):
            connection.sendto(b"x", (params["host"], params["port"]))
        else:
            connection.connect((params["host"], params["port"]))


def leave_a_thread(inputs: Inputs, out: Path, params: Params) -> None:
    threading.Thread(target=time.sleep, args=(300,)).start()


def _mark(inputs: Inputs, children: list[subprocess.Popen[bytes]], wait_s: float = 0) -> None:
    """Tell the test, through a file, which processes there are now."""
    if "pids" not in inputs:
        return
    import psutil

    time.sleep(wait_s)  # the children set their signals up
    pids = [os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))]
    aside = inputs["pids"].with_suffix(".tmp")
    aside.write_text(json.dumps(pids))
    aside.replace(inputs["pids"])


def speak_and_fail(inputs: Inputs, out: Path, params: Params) -> None:
    speak(inputs, out, params)
    raise ValueError("cannot go on")


def compute_a_huge_power(inputs: Inputs, out: Path, params: Params) -> None:
    """One operation of Python's own that takes minutes, and lets no other thread in meanwhile."""
    _mark(inputs, [])
    pow(3, 3_000_000_000)


def detach(inputs: Inputs, out: Path, params: Params) -> None:
    """Like ``spawn``, for a Python without psutil: a child in a session of its own."""
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], start_new_session=True)
    aside = inputs["pids"].with_suffix(".tmp")
    aside.write_text(json.dumps([os.getpid(), child.pid]))
    aside.replace(inputs["pids"])
    time.sleep(300)


def unpickle_harmlessly(inputs: Inputs, out: Path, params: Params) -> None:
    """Not even what would do no harm, by each of the ways there are."""
    import collections
    import io
    import pickle
    import shelve

    data = pickle.dumps(collections.OrderedDict(a=1))
    if params["how"] == "C":
        pickle.loads(data)
    elif params["how"] == "Python":
        pickle._Unpickler(io.BytesIO(data)).load()  # type: ignore[attr-defined]
    elif params["how"] == "numpy":
        import numpy as np

        np.save(out / "array.npy", np.array([{}], dtype=object), allow_pickle=True)
        np.load(out / "array.npy", allow_pickle=True)
    else:
        with shelve.open(str(out / "shelf")) as shelf:
            shelf["a"] = collections.OrderedDict(a=1)
            shelf["a"]


def connect_by_bytes(inputs: Inputs, out: Path, params: Params) -> None:
    import socket

    with socket.socket() as connection:
        connection.settimeout(1)
        connection.connect((b"192.0.2.1", 9))


def bars(inputs: Inputs, out: Path, params: Params) -> None:
    """A tool draws a bar, then the step speaks itself, then the tool draws another."""
    from tqdm import tqdm

    for _ in tqdm(range(6), desc="a tool: ", mininterval=0):
        time.sleep(0.25)
    progress.report(7, 7, "windows")
    for _ in tqdm(range(6), desc="later: ", mininterval=0):
        time.sleep(0.05)


STEPS = {
    name: f"testing.steps_cheap:{name}"
    for name, value in list(vars().items())
    if isinstance(value, FunctionType) and not name.startswith("_")
}
