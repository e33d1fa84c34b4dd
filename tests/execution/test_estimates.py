"""How long a step will take: as its like took before, scaled by what it reads; else nothing is
said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.plans import plan

from phipipe import words
from phipipe.execution import estimates, outlook
from phipipe.execution.estimates import Estimate
from phipipe.execution.outlook import Outlook
from phipipe.execution.results import Forecast
from phipipe.planning.plan import Plan
from phipipe.steps import Step

MIB = 2**20


def record(
    step: str, seconds: object, reads: str | None = None, size: int = MIB, **params: Any
) -> dict[str, Any]:
    return {
        "step": step,
        "runs": f"work/{step}",
        "params": params,
        "inputs": {"model": reads} if reads else {},
        "digest": f"{step}-{size}-{seconds}",
        "outputs": [{"size": size}],
        "usage": {"seconds": seconds},
    }


def asked(records: list[dict[str, Any]], size: int, **params: Any) -> Estimate | None:
    known = estimates.timings(records)
    return known.estimate("convert", "work/convert", params, size)


SOURCES = {size: record("source", 1.0, size=size * MIB) for size in (100, 200, 400)}


def converted(size: int, seconds: object, **params: Any) -> dict[str, Any]:
    return record("convert", seconds, reads=SOURCES[size]["digest"], **params)


def test_a_step_takes_as_long_as_the_same_step_took_on_the_same_size() -> None:
    told = asked([*SOURCES.values(), converted(100, 30.0)], 100 * MIB)
    assert told == Estimate(seconds=30.0, earlier=1)


def test_time_grows_with_what_is_read() -> None:
    told = asked([*SOURCES.values(), converted(100, 30.0)], 300 * MIB)
    assert told is not None
    assert told.seconds == pytest.approx(90.0)


def test_the_middle_of_several_results_counts() -> None:
    records = [*SOURCES.values(), *(converted(100, s) for s in (10.0, 20.0, 900.0))]
    assert asked(records, 100 * MIB) == Estimate(seconds=20.0, earlier=3)


def test_results_with_the_same_parameters_come_first() -> None:
    records = [*SOURCES.values(), converted(100, 10.0, bits=4), converted(100, 50.0, bits=8)]
    assert asked(records, 100 * MIB, bits=8) == Estimate(seconds=50.0, earlier=1)
    assert asked(records, 100 * MIB, bits=2) == Estimate(seconds=30.0, earlier=2)


def test_another_runtimes_results_tell_nothing() -> None:
    records = [*SOURCES.values(), converted(100, 10.0, backend="torch")]
    assert asked(records, 100 * MIB, backend="openvino") is None


def test_a_size_that_is_far_from_all_results_has_no_estimate() -> None:
    records = [*SOURCES.values(), converted(100, 30.0)]
    assert asked(records, 801 * MIB) is None
    assert asked(records, 12 * MIB) is None
    assert asked([], MIB) is None


def test_a_result_whose_input_is_gone_tells_nothing() -> None:
    records = [record("convert", 5.0, reads="gone", size=9 * MIB)]
    records[0]["inputs"]["text"] = SOURCES[100]["digest"]
    assert asked([*SOURCES.values(), *records], 100 * MIB) is None


@pytest.mark.parametrize("seconds", [None, "3", 0, -1.0, float("nan")])
def test_a_record_without_a_time_tells_nothing(seconds: object) -> None:
    assert asked([*SOURCES.values(), converted(100, seconds)], 100 * MIB) is None


@given(
    st.lists(st.tuples(st.floats(0.001, 1e6), st.sampled_from([*SOURCES])), max_size=12),
    st.integers(1, 2**44),
)
def test_an_estimate_is_within_what_the_nearest_results_allow(
    past: list[tuple[float, int]], size: int
) -> None:
    told = asked([*SOURCES.values(), *(converted(s, seconds) for seconds, s in past)], size)
    if told is not None:
        scaled = [seconds * size / (s * MIB) for seconds, s in past]
        assert min(scaled) * 0.99 <= told.seconds <= max([*scaled, *(s for s, _ in past)]) * 1.01
        assert 1 <= told.earlier <= estimates.NEAREST


def outlooks(*plans: Plan, known: dict[str, float]) -> list[Outlook]:
    return [
        Outlook(
            plan=one,
            forecast=tuple(Forecast(step=s, key=None, cached=False, why="") for s in one.steps),
            estimates={
                s.name: Estimate(seconds=known[s.name], earlier=2)
                for s in one.steps
                if s.name in known
            },
        )
        for one in plans
    ]


def test_shared_steps_cost_once_and_unknown_ones_are_named() -> None:
    def made(name: str, **params: Any) -> Step:
        return Step(
            name=name, runs=f"work/{name}", version=1, params=params, output_bytes=5, memory_bytes=7
        )

    first = plan("a", made("source"), made("quantize", bits=4), made("measure"))
    second = plan("b", made("source"), made("quantize", bits=8))
    both = outlooks(first, second, known={"source": 10.0, "quantize": 3.0})
    whole = outlook.total(both)
    assert (whole.steps, whole.seconds, whole.unknown) == (4, 16.0, ("measure",))
    assert (whole.disk.written, whole.memory_bytes, whole.earlier) == (20, 7, 4)
    assert (both[1].cost.steps, both[1].cost.seconds) == (2, 13.0)
    assert outlook.total(outlooks(first, known={})).seconds is None
    assert outlook.total([]).seconds == 0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "1 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3599, "1 h"),
        (4800, "1 h 20 min"),
        (90_000, "25 h"),
        (200_000, "2 days 7 h"),
        (172_800, "2 days"),
    ],
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said
