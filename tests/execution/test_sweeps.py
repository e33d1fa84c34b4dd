"""Steps that go through the layers of one checkpoint: side by side, each layer is read once, and
what comes out is what comes out of each alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.plans import plan, planned, step

from phipipe.cli.listeners import Silent
from phipipe.errors import StepFailed, StepKilled
from phipipe.execution.dispatch import attempt
from phipipe.execution.manner import Manner
from phipipe.execution.nodes import Node, graph
from phipipe.execution.results import Outcome, Waiting
from phipipe.execution.room import Room
from phipipe.execution.sweeps import Sweeps
from phipipe.execution.todo import Todo
from phipipe.planning.plan import Plan
from phipipe.processes import company
from phipipe.processes.company import Company, Seat
from phipipe.settings import Settings
from phipipe.steps import Step
from phipipe.store.store import Store

LAYERS = 5  # of the embedded model
SWEEPING = ("baseline", "imatrix", "sensitivity", "weights")


# Which steps go together


def sweeping(name: str, source: str, *needs: str, memory_bytes: int = 0) -> Step:
    return replace(step(name, source, *needs, memory_bytes=memory_bytes), layers=source)


class Starts:
    """The steps of a plan, of which those ``done`` have a result and those ``queued`` wait."""

    def __init__(self, folder: Path, *steps: Step, jobs: int = 4) -> None:
        self._todo = Todo(graph([plan("one", *steps)]))
        self.nodes = {node.step.name: node for node in self._todo.nodes.values()}
        here = Room(jobs=jobs, memory_bytes=100, is_here=lambda step: True, elsewhere=False)
        self.sweeps = Sweeps(self._todo, here, Store(folder))

    def done(self, *names: str) -> Starts:
        for name in names:
            self._todo.finish(self.nodes[name], object())  # type: ignore[arg-type]
        return self

    def queued(self, *names: str) -> Starts:
        for name in names:
            node = self.nodes[name]
            node.waiting = Waiting(step=node.step, key=name, record={}, why="")
        return self

    def held(self) -> list[str]:
        nodes = [node for node in self.nodes.values() if node.waiting]
        return [node.step.name for node in nodes if self.sweeps.holds(node)]

    def seats(self) -> dict[str, Seat | None]:
        def start(node: Node) -> Seat | None:
            node.running = True
            return self.sweeps.seat(node)

        nodes = self.sweeps.ordered([n for n in self.nodes.values() if n.waiting], measuring=False)
        found = {node.step.name: start(node) for node in nodes}
        self.sweeps.seal()
        return found


def test_those_of_one_checkpoint_start_one_after_another_and_have_seats(tmp_path: Path) -> None:
    steps = [step("source"), step("cut"), sweeping("a", "source"), sweeping("x", "cut")]
    steps += [step("z", "source"), sweeping("b", "source")]
    starts = Starts(tmp_path, *steps).done("source", "cut").queued("a", "x", "z", "b")
    seats = starts.seats()
    assert list(seats) == ["a", "b", "x", "z"]
    assert [seat and seat.number for seat in seats.values()] == [0, 1, None, None]
    assert seats["a"]
    assert seats["b"]
    folder, room = Path(seats["a"].folder), Path(seats["b"].room)
    assert (folder / "2.expected").exists()
    starts.sweeps.ended(starts.nodes["b"])
    assert [path.name for path in folder.glob("*.left")] == ["1.left"]
    assert room.exists()
    starts.sweeps.ended(starts.nodes["a"])
    assert not folder.exists()
    assert not room.exists()


def test_who_was_held_tells_what_it_waited_for(tmp_path: Path) -> None:
    steps = [step("source"), step("text"), sweeping("a", "source"), sweeping("b", "source", "text")]
    starts = Starts(tmp_path, *steps).done("source").queued("a", "text")
    assert starts.held() == ["a"]
    starts.done("text")
    needs = starts.sweeps.awaited(starts.nodes["a"])
    assert [need.step.name for need in needs] == ["source", "text"]


def test_two_are_not_held_for_each_other(tmp_path: Path) -> None:
    """Each could wait for what comes after the other, by way of another checkpoint's layers."""
    steps = [step("source"), step("cut"), step("t"), sweeping("a", "source")]
    steps += [sweeping("d", "cut", "a"), sweeping("c", "cut"), sweeping("b", "source", "c")]
    starts = Starts(tmp_path, *steps).done("source", "cut").queued("a", "c")
    assert starts.held() == []


def test_one_that_is_ready_waits_for_those_that_soon_are(tmp_path: Path) -> None:
    steps = [step("source"), step("text"), sweeping("a", "source"), sweeping("b", "source", "text")]
    assert Starts(tmp_path, *steps).done("source").queued("a", "text").held() == ["a"]
    assert Starts(tmp_path, *steps).done("source", "text").queued("a", "b").held() == []
    alone = Starts(tmp_path, *steps, jobs=1)
    assert alone.done("source").queued("a", "text").held() == []


@pytest.mark.parametrize(
    "other",
    [
        sweeping("b", "source", "a"),  # cannot be ready before
        sweeping("b", "source", "text", memory_bytes=101),  # finds no room
        sweeping("b", "cut", "text"),  # has other layers
        step("b", "source", "text"),
    ],
)
def test_nobody_waits_for_what_cannot_go_along(tmp_path: Path, other: Step) -> None:
    steps = [step("source"), step("cut"), step("text"), sweeping("a", "source"), other]
    starts = Starts(tmp_path, *steps).done("source", "cut").queued("a", "text")
    assert starts.held() == []
    assert starts.seats()["a"] is None


# How they agree


def companies(folder: Path, count: int) -> list[Company]:
    company.seal(folder, count)
    return [Company(Seat(folder=str(folder), number=i, room="")) for i in range(count)]


def test_who_comes_late_goes_alone(tmp_path: Path) -> None:
    first, second, late = companies(tmp_path, 3)
    late_seat = Seat(folder=str(tmp_path), number=2, room="")
    late_seat.leave()  # its step has not started yet when the patience of the others ends
    told: list[bool] = []
    both = [threading.Thread(target=lambda c=one: told.append(c.join())) for one in (first, second)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert told == [True, True]
    assert not late.join()
    assert first.is_reader()
    assert not second.is_reader()
    first.leave()
    assert second.is_reader()


def test_one_whose_others_never_come_goes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(company, "PATIENCE_S", 0.0)
    assert not companies(tmp_path, 2)[0].join()


class Walk:
    """Companies, in threads, on their way through ``LAYERS`` layers and two rooms."""

    def __init__(self, folder: Path, ends: list[int], random: Random) -> None:
        self.rooms, self.reads, self.wrong = [-1, -1], [0] * LAYERS, list[str]()
        self.together = [False] * len(ends)
        self._random = random
        pairs = zip(companies(folder, len(ends)), ends, strict=True)
        threads = [
            threading.Thread(target=self._walk, args=(i, one, end))
            for i, (one, end) in enumerate(pairs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _walk(self, number: int, one: Company, end: int) -> None:
        self.together[number] = one.join()
        for i in range(end if self.together[number] else 0):
            if i:
                one.has_passed(i - 1)
            if not one.await_layer(i) and one.await_room(i):
                one.read(i, self._fill)
            for _ in range(3):
                if self.rooms[i % 2] != i:
                    self.wrong.append(f"{self.rooms[i % 2]} in place of {i}")
                time.sleep(self._random.random() / 2000)
        one.leave()

    def _fill(self, i: int) -> None:
        self.reads[i] += 1
        self.rooms[i % 2] = i


@settings(max_examples=25)
@given(
    ends=st.lists(st.integers(0, LAYERS) | st.just(LAYERS), min_size=2, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_all_see_each_layer_and_it_is_read_once_unless_its_reader_leaves(
    tmp_path_factory: pytest.TempPathFactory, ends: list[int], seed: int
) -> None:
    """``ends``: before which layer each one goes."""
    walk = Walk(tmp_path_factory.mktemp("company"), ends, Random(seed))
    assert not walk.wrong
    went = [end for end, together in zip(ends, walk.together, strict=True) if together]
    assert all(walk.reads[: max(went, default=0)])
    if walk.together[0] and ends[0] == LAYERS:  # the reader stays
        assert walk.reads == [1] * LAYERS


# In processes of their own


@pytest.fixture
def run(
    toolchains: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Outcome]]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PHIPIPE_WORKER_PATH", str(Path(__file__).parent))

    def made(*plans: Plan, jobs: int) -> list[Outcome]:
        store = Store(tmp_path / f"jobs-{jobs}")
        return attempt(plans, store, Settings.read(), Silent(), Manner(jobs=jobs))

    return made


def merged(*plans: Plan, names: tuple[str, ...]) -> Plan:
    """One plan of the steps called ``names`` and of all that they need, in no order of their
    own."""
    steps = {one.name: replace(one, after=()) for one in plans[0].steps}
    steps |= {one.name: replace(one, after=()) for p in plans for one in p.steps}
    wanted = [*names]
    for name in wanted:
        wanted += [need for need in steps[name].needs.values() if need not in wanted]
    return replace(plans[0], steps=tuple(one for name, one in steps.items() if name in wanted))


@pytest.mark.integration
def test_what_each_makes_is_the_same_together_and_alone(run: Callable[..., list[Outcome]]) -> None:
    learning = planned("weights={learn: gptq}")
    weighed = planned("backend=llamacpp", "quantize={imatrix: true}")
    whole = merged(weighed, learning, names=("baseline", "imatrix", "weights"))
    (together,), (alone,) = run(whole, jobs=4), run(whole, jobs=1)
    assert together.error is alone.error is None
    names = ("baseline", "imatrix", "weights")
    for name in names:
        ours, theirs = together.results[name], alone.results[name]
        assert (ours.key, ours.stored.digest) == (theirs.key, theirs.stored.digest), name
        assert not {"layers_read", "layers_given"} & {*theirs.usage}
    usages = [together.results[name].usage for name in names]
    assert sum(usage["layers_read"] for usage in usages) == LAYERS
    assert sum(usage["layers_given"] for usage in usages) == LAYERS * (len(names) - 1)


@pytest.mark.integration
def test_one_that_fails_or_dies_or_writes_or_turns_back_changes_nothing_for_others(
    run: Callable[..., list[Outcome]],
) -> None:
    ground = planned()
    source = next(one for one in ground.steps if one.name == "source")

    def summing(name: str, **params: object) -> Step:
        return Step(
            name=name,
            runs="sweep_steps/sum",
            version=1,
            needs={"source": "source"},
            params=params,
            layers="source",
            toolchain="torch",
        )

    fails = replace(ground, steps=(source, summing("fails", fails_at=1)))
    dies = replace(ground, steps=(source, summing("dies", dies_at=3)))
    steps = (summing("reads"), summing("writes", writes=True), summing("turns", backwards=True))
    others = replace(ground, steps=(source, *steps))
    (failed, died, passed), (only,) = run(fails, dies, others, jobs=5), run(others, jobs=1)
    assert isinstance(failed.error, StepFailed)
    assert isinstance(died.error, StepKilled)
    assert passed.error is only.error is None
    for name in ("reads", "writes", "turns"):
        assert passed.results[name].stored.digest == only.results[name].stored.digest
    usages = [passed.results[name].usage for name in ("reads", "writes", "turns")]
    # Each read for all until it ended; how many layers it had read ahead by then is its own matter.
    assert 1 <= sum(usage["layers_read"] for usage in usages) < 4  # of four, and of three readers
