"""What to ship to which device: decisions over generated boards, and the words for them."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.boards import entry

from phipipe import backends
from phipipe.board import board, file, picks, remedies, text
from phipipe.board import entry as board_entry
from phipipe.board.candidates import Answer, Candidate, Speed
from phipipe.package import figures
from phipipe.recipe.device import load, names
from phipipe.recipe.learned import Weights

LIMIT = figures.KLD_FIT[1]
HERE, ELSEWHERE = ("2 cores", 128), ("8 cores", 128)


def build(
    name: str, kld: float | None = 0.02, size: float | None = 1.0, speed: float = 0, **more: Any
) -> Candidate:
    given_speed = (
        Speed(value=speed, low=0.95 * speed, high=1.05 * speed, conditions=HERE) if speed else None
    )
    usual: dict[str, Any] = {
        "device": "a board",
        "backend": "llamacpp",
        "api": "cpu",
        "quantized": True,
        "place": "true",
    }
    return Candidate(
        **{"name": name, "kld": kld, "size": size, "speed": given_speed, **usual, **more}
    )


def speeds() -> st.SearchStrategy[Speed | None]:
    ends = st.lists(st.integers(1, 12).map(float), min_size=3, max_size=3).map(sorted)
    where = st.sampled_from([HERE, HERE, ELSEWHERE])
    some = st.builds(lambda e, c: Speed(low=e[0], value=e[1], high=e[2], conditions=c), ends, where)
    return st.none() | some


candidates = st.builds(
    Candidate,
    name=st.just(""),
    device=st.sampled_from(["Mac", "NPU", "Pi", ""]),
    backend=st.sampled_from(["mlx", "llamacpp"]),
    api=st.sampled_from(["cpu", "metal", ""]),
    failed=st.integers(0, 4).map(lambda n: n == 0),
    size=st.sampled_from([None, 1.0, 2.0, 3.0, 4.0]),
    kld=st.sampled_from([None, 0.0, 1e-8, 0.01, LIMIT, LIMIT + 1e-9, 0.5]),
    bound=st.integers(0, 3).map(lambda n: n == 0),
    quantized=st.booleans(),
    sound=st.integers(0, 4).map(lambda n: n > 0),
    place=st.sampled_from(["true", "emulated", "false"]),
    speed=speeds(),
    wider=st.sampled_from(["", "`precision: int8`"]),
    finer=st.sampled_from(["", "`quantize: {imatrix: true}`"]),
)
boards = st.lists(candidates, max_size=10).map(
    lambda found: [
        replace(c, name=f"b{i}", speed=c.speed if c.place == "true" else None)
        for i, c in enumerate(found)
    ]
)


@given(boards)
def test_every_device_gets_one_answer_and_every_pick_is_fit_and_on_its_own_front(
    every: list[Candidate],
) -> None:
    found, by_name = picks.answers(every), {c.name: c for c in every}
    asked = {c.device for c in every if c.device or not c.failed}
    assert sorted(answer.device for answer in found) == sorted(asked)
    for answer in found:
        mine = {c.name for c in every if c.device == answer.device}
        fit = {name for name in mine if by_name[name].fit}
        assert {pick.build for pick in answer.picks} <= fit & set(answer.front)
        assert bool(fit) == (answer.verdict == "ship") == bool(answer.picks)
        assert bool(answer.reason) == (len(fit) < 2)
        assert len({pick.aim for pick in answer.picks} | set(answer.undecided)) == (3 if fit else 0)
        assert set(answer.behind) | {*answer.behind.values(), *answer.front} <= mine
        assert len(answer.line.splitlines()) == 1
        assert answer.line.startswith(answer.where)


@given(boards)
def test_speed_decides_only_where_it_was_taken_there_and_nobodys_spread_reaches_it(
    every: list[Candidate],
) -> None:
    by_name = {c.name: c for c in every}
    for answer in picks.answers(every):
        fit = [c for c in every if c.device == answer.device and c.fit]
        for pick in (p for p in answer.picks if p.aim == "answer speed"):
            chosen = by_name[pick.build].speed
            assert chosen is not None
            alike = [c for c in fit if c.speed and c.speed.conditions == chosen.conditions]
            assert len(alike) > 1 or len(fit) == 1
            floor = max(c.speed.low for c in alike if c.speed)
            reaching = {c.name for c in alike if c.speed and c.speed.high >= floor}
            assert reaching == {pick.build, *pick.equals}
            assert (
                pick.build
                == min(
                    (by_name[name] for name in reaching), key=lambda c: (c.bound, c.closeness)
                ).name
            )


@given(boards, st.randoms(use_true_random=False))
def test_the_order_of_builds_changes_nothing(every: list[Candidate], dice: random.Random) -> None:
    assert picks.answers(every) == picks.answers(dice.sample(every, len(every)))


@given(boards)
def test_what_is_behind_is_behind_something_on_its_devices_front(every: list[Candidate]) -> None:
    by_name = {c.name: c for c in every}
    for answer in picks.answers(every):
        mine = [c for c in every if c.device == answer.device]
        fast = frozenset(
            n for p in answer.picks if p.aim == "answer speed" for n in (p.build, *p.equals)
        )
        for c in mine:
            rivals = [a for a in mine if picks.ahead(a, c, fast)]
            assert (c.name in answer.behind) == bool(rivals)
            assert (c.name in answer.front) == (not rivals and c.sound and c.known)
            if c.name in answer.behind:
                rival = by_name[answer.behind[c.name]]
                assert rival in rivals
                assert rival.name in answer.front


def only(*found: Candidate) -> Answer:
    (answer,) = picks.answers(found)
    return answer


def chosen(answer: Answer) -> dict[str, str]:
    return {pick.aim: pick.build for pick in answer.picks}


def test_a_device_that_nothing_was_timed_on_has_no_fastest_build() -> None:
    answer = only(
        build("small", place="false"), build("exact", 0.0, 9.0, quantized=False, place="false")
    )
    assert chosen(answer) == {"size": "small", "fidelity": "small"}
    assert answer.line.endswith(
        "no pick by answer speed, since none of them was timed on the device."
    )
    assert only(build("small", speed=9), build("x", size=0.5)).undecided == {
        "answer speed": "only small was timed on the device"
    }
    alone = only(build("alone", speed=9))
    assert chosen(alone) == dict.fromkeys(("size", "fidelity", "answer speed"), "alone")
    assert alone.line == "a board, cpu: ship alone, the only build."
    lost = build("lost", failed=True)
    assert only(build("made"), lost).line == "a board, cpu: ship made, the only one that succeeded."
    assert (
        only(build("good"), build("bad", 0.5)).line
        == "a board, cpu: ship good, the only one that is fit."
    )


def test_speeds_whose_spreads_overlap_are_equal_and_fidelity_then_size_decide() -> None:
    answer = only(
        build("near", 0.01, 2.0, 100), build("far", 0.03, 1.0, 104), build("slow", 0.001, 2.0, 50)
    )
    assert chosen(answer)["answer speed"] == "near"
    assert "near if answer speed matters most (equally fast as far)" in answer.line
    answer = only(build("large", 0.01, 2.0, 104), build("small", 0.01, 1.0, 100))
    assert chosen(answer)["answer speed"] == "small"
    answer = only(build("near", 0.01, 2.0, 100), build("far", 0.03, 1.0, 120))
    assert chosen(answer)["answer speed"] == "far"
    assert "equally" not in answer.line
    answer = only(*(build(f"b{i}", 0.01 + i / 1000, 2.0, 100) for i in range(4)))
    assert "(equally fast as 3 others)" in answer.line
    assert answer.picks[-1].equals == ("b1", "b2", "b3")


def test_a_lower_bound_wins_no_tie_of_speed() -> None:
    answer = only(build("bound", 0.001, 1.0, 100, bound=True), build("whole", 0.03, 1.0, 101))
    assert chosen(answer)["answer speed"] == "whole"


def test_speeds_of_two_machines_never_decide() -> None:
    other = Speed(value=900, low=880, high=920, conditions=ELSEWHERE)
    answer = only(
        build("a", speed=9), build("b", size=2.0, speed=1), replace(build("c"), speed=other)
    )
    assert chosen(answer)["answer speed"] == "a"
    assert (
        "different machines"
        in only(build("a", speed=9), replace(build("c"), speed=other)).undecided["answer speed"]
    )


def test_one_figure_alone_stands_for_a_range() -> None:
    assert Speed.of(100, [], HERE) == Speed.of(100, [100.0, 100.0], HERE)
    assert (Speed.of(100, [], HERE).low, Speed.of(100, [], HERE).high) == pytest.approx((90, 110))
    assert (Speed.of(100, [101, 99], HERE).low, Speed.of(100, [101, 99], HERE).high) == (99, 101)


def test_a_build_is_behind_another_of_its_own_device_only() -> None:
    mac, pi = picks.answers([build("a", device="Mac"), build("b", 0.03, 2.0, device="Pi")])
    assert (mac.front, pi.front, dict(pi.behind)) == (("a",), ("b",), {})
    assert dict(only(build("a"), build("b", 0.03, 2.0)).behind) == {"b": "a"}
    assert (
        dict(only(build("a", speed=5), build("b", 0.03, 2.0, 50)).behind) == {}
    )  # slower, so not ahead


def test_a_lower_bound_is_never_ahead_of_a_whole_divergence() -> None:
    answer = only(build("bound", 0.01, bound=True), build("whole", 0.02, 2.0))
    assert dict(answer.behind) == {}
    assert "lower bound" in answer.undecided["fidelity"]
    assert dict(only(build("whole", 0.01), build("bound", 0.02, 2.0, bound=True)).behind) == {
        "bound": "whole"
    }


def test_an_unsound_build_is_neither_shipped_nor_ahead() -> None:
    answer = only(build("odd", 0.0, 0.1, sound=False), build("good"))
    assert chosen(answer) == {"size": "good", "fidelity": "good"}
    assert (answer.front, dict(answer.behind)) == (("good",), {})
    assert "unlike the original: odd" in " ".join(answer.cautions)
    assert (
        "odd is not fit to ship: it reads text or chats unlike the original"
        in only(build("odd", sound=False)).line
    )


# The really trained small model of 135 M parameters: every 4-bit file is further off than any usual
# one.
TRAINED = (
    entry("ov", 5.42, 0.345, backend="openvino", scheme="int4 asymmetric, groups of 64"),
    entry("ort", 5.14, 0.476, backend="onnxruntime"),
    entry("gguf", 5.32, 0.073, backend="llamacpp", scheme="Q4_K_M, importance matrix"),
    entry(
        "torch", 6.78, 0.448, backend="torch", scheme="auto-round, 4 bits symmetric, groups of 128"
    ),
)


def test_where_no_4_bit_file_is_fit_none_is_recommended_and_what_would_be_is_said() -> None:
    (answer,) = board.answers(TRAINED)
    assert (answer.verdict, answer.picks) == ("none fit", ())
    assert answer.reason == (
        "none of these 4 builds is fit to ship: the closest, gguf, has a mean KLD of 0.0730, "
        "beyond the limit of 0.072 "
        "(Q4_0, the coarsest usual 4-bit file)"
    )
    assert answer.closer[0] == "Fit as a rule: `precision: int8`"
    assert answer.closer[1] == "Closer at the same precision: `weights: {learn: gptq}`"
    assert text.advice(TRAINED) == [answer.line, f"  {answer.closer[1]}."]
    (answer,) = board.answers(
        [*TRAINED, entry("eight", 8.35, 3.6e-3, backend="openvino", precision="int8")]
    )
    assert {pick.build for pick in answer.picks} == {"eight"}
    assert "Not fit" in " ".join(answer.cautions)


def test_a_board_says_its_answers_as_data() -> None:
    raw = json.loads(file.dump(TRAINED))
    (told,) = raw["picks"]
    (answer,) = board.answers(TRAINED)
    assert told == json.loads(json.dumps(asdict(answer)))


def test_a_failed_build_still_names_its_device() -> None:
    lost = board_entry.failed("x", "mlx", "int4", "no memory", "Mac", "metal")
    assert [a.line for a in board.answers([lost])] == [
        "Mac, metal: nothing to ship: no build succeeded."
    ]
    mixed = board.answers([lost, entry("y", device="Mac", api="metal")])
    assert ["Not built: x." in a.cautions for a in mixed] == [True]


@pytest.mark.parametrize("backend", backends.names())
def test_what_would_be_closer_is_valid_on_every_unit_it_is_said_of(backend: str) -> None:
    module = backends.load(backend)
    assert module.finer
    for row in module.finer:
        section = module.options if row.section == "quantize" else Weights
        section.model_validate(row.options)
        for target in map(load, names()):
            for unit in (
                u for u in target.units if u.api in module.apis and u.api not in row.not_on
            ):
                insisted = unit.constraints.get("int4", {})
                assert all(
                    row.options[name] in allowed
                    for name, allowed in insisted.items()
                    if name in row.options
                )


def test_a_wider_precision_is_one_that_the_unit_has_and_the_board_has_not() -> None:
    assert remedies.wider("openvino", "cpu", "int4", {"int4"}) == "`precision: int8`"
    assert remedies.wider("openvino", "cpu", "int4", {"int4", "int8"}) == "`precision: fp16`"
    assert remedies.wider("openvino", "intel-npu", "int4", {"int4"}) == ""
    assert remedies.wider("onnxruntime", "directml", "int4", {"int4"}) == "`precision: fp16`"
    assert (
        remedies.wider("of the future", "cpu", "int4", set())
        == remedies.wider("torch", "cpu", "fp32", set())
        == ""
    )
    assert remedies.finer("litert", "cpu", "int4", "int4 per row, weight only") == ""
    learning = "`weights: {learn: gptq}`"
    assert remedies.finer("litert", "cpu", "int4", "int4 per row, dynamic") == learning
    by_row = "int4 per row, dynamic, gptq learned"
    assert remedies.finer("litert", "cpu", "int4", by_row) == "`quantize: {group_size: 32}`"
    assert remedies.finer("openvino", "cpu", "int4", "int4 asymmetric") == learning
    by_row = "`weights: {learn: gptq, group_size: -1}`"
    assert remedies.finer("openvino", "intel-npu", "int4", "int4 symmetric") == by_row
    assert remedies.finer("llamacpp", "cpu", "int4", "Q4_0, learned once") == ""
    assert (
        remedies.finer("torch", "cpu", "int8", "")
        == remedies.finer("of the future", "cpu", "int4", "")
        == ""
    )
