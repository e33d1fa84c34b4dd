"""What processes spend: processor time, bytes from and to disks, and tokens, of steps in a server
too."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing.workers import Bench, posix

from phipipe import progress
from phipipe.execution.process import Request
from phipipe.processes import spending
from phipipe.processes.spending import Spent

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")
BUSY = "import time\nwhile time.process_time() < {}: sum(range(10_000))"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.worker.close()


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(10_000))


def test_a_process_counts_its_own_work() -> None:
    before = spending.of_process()
    busy(0.2)
    assert 0.2 <= spending.of_process().since(before).cpu_seconds < 1.5


@posix
def test_a_child_counts_once_it_has_ended() -> None:
    before = spending.of_process()
    subprocess.run([sys.executable, "-c", BUSY.format(0.3)], check=True)
    assert spending.of_process().since(before).cpu_seconds >= 0.3


def test_a_thread_counts_its_own_work_alone() -> None:
    before = spending.of_thread()
    other = threading.Thread(target=busy, args=(0.3,))
    other.start()
    other.join()
    assert spending.of_thread().since(before).cpu_seconds < 0.2


@linux
def test_bytes_that_are_written_count_also_through_mapped_memory(tmp_path: Path) -> None:
    import mmap

    before, thread = spending.of_process(), spending.of_thread()
    if before.written_bytes is None:
        pytest.skip("this kernel counts no bytes")
    (tmp_path / "plain").write_bytes(b"x" * 2**20)
    with (tmp_path / "mapped").open("w+b") as stream:
        stream.truncate(2**21)
        with mmap.mmap(stream.fileno(), 2**21) as mapped:
            mapped[:] = b"y" * 2**21
    for now, then in ((spending.of_process(), before), (spending.of_thread(), thread)):
        written = now.since(then).written_bytes
        assert written is not None
        if written == 0:
            pytest.skip("temporary files lie in memory")
        assert 3 * 2**20 <= written < 4 * 2**20


def test_what_is_unknown_is_left_out() -> None:
    now = Spent(cpu_seconds=2.5, read_bytes=None, written_bytes=7)
    before = Spent(cpu_seconds=3.0, read_bytes=1, written_bytes=2)
    assert now.since(before).usage() == {"cpu_seconds": 0.0, "written_bytes": 5}


def test_lines_that_are_none_of_ours_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "io").write_text("read_bytes: 12\nwrite_bytes: many\n", "utf-8")
    assert dict(spending._counters(tmp_path / "io")) == {"read_bytes": 12}
    assert dict(spending._counters(tmp_path / "none")) == {}


# Of steps in a server


def test_each_step_of_a_server_has_its_own_figures(bench: Bench) -> None:
    first, idle = bench("work", seconds=0.5), bench("count")
    assert first.usage()["cpu_seconds"] >= 0.4
    assert idle.usage()["cpu_seconds"] < 0.3
    assert first.usage()["seconds"] >= 0.5
    assert "scored_tokens" not in first.usage()


@posix
def test_a_steps_children_count_with_it(bench: Bench) -> None:
    bench("count")  # the start of the server is over
    took = bench("run_and_wait", command=[sys.executable, "-c", BUSY.format(0.4)])
    assert took.usage()["cpu_seconds"] >= 0.4


@linux
def test_the_bytes_that_a_step_writes_are_its_own(bench: Bench) -> None:
    bench("count")
    wrote = bench("write", mib=3).usage()
    if not wrote.get("written_bytes"):
        pytest.skip("this system counts no bytes, or temporary files lie in memory")
    assert 3 * 2**20 <= wrote["written_bytes"] < 4 * 2**20
    assert bench("count").usage()["written_bytes"] < 2**20


def test_tokens_are_counted_for_each_step_by_itself(bench: Bench) -> None:
    told = bench("count_tokens", scored=2048, generated=96).usage()
    assert (told["scored_tokens"], told["generated_tokens"]) == (2048, 96)
    assert not {"scored_tokens", "generated_tokens"} & set(bench("count").usage())


def test_a_gpu_is_named_for_the_step_that_used_it_and_given_back(bench: Bench) -> None:
    told = bench("use_gpu").usage()
    assert (told["gpu"], told["peak_gpu_bytes"]) == ("GPU of 0 bytes", 7)
    after = bench("count").usage()
    assert not {"gpu", "peak_gpu_bytes"} & set(after)
    bench("gpu_was_released")


def test_a_step_knows_what_it_was_foretold_to_take(bench: Bench) -> None:
    scratch = bench.folder / "foretold"
    scratch.mkdir()
    request = Request(
        step="use_gpu", runs="testing.steps_cheap/use_gpu", inputs={}, params={}, memory_bytes=12
    )
    assert bench.worker.run(request, scratch).usage()["gpu"] == "GPU of 12 bytes"


def test_tokens_that_were_taken_are_gone() -> None:
    progress.take_tokens()
    progress.scored(3)
    progress.scored(4)
    assert progress.take_tokens() == {"scored_tokens": 7}
    assert progress.take_tokens() == {}


def test_a_look_at_what_was_spent_costs_next_to_nothing() -> None:
    start = time.process_time()
    for _ in range(200):
        spending.of_process()
        spending.of_thread()
    assert (time.process_time() - start) / 400 < 0.002
