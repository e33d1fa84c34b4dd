"""Why a step runs: the leaf that changed, both sides told apart, and only what is worth comparing
is compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from testing import hostile_paths
from testing.plans import planned

from phipipe.cli.listeners import Silent
from phipipe.execution import why
from phipipe.execution.bench import Bench
from phipipe.execution.dispatch import attempt
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.steps import Outside, Step
from phipipe.store import keys
from phipipe.store.store import Store

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="→"), max_size=60)
    | st.sampled_from(
        ["absent", '"absent"', "true", "1", "x" * 200, "x" * 199 + "y", "x" * 24 + "…"]
    )
)
NESTED = st.recursive(
    LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


def test_differences_name_what_changed() -> None:
    old = {
        "version": 1,
        "inputs": {"a": "1"},
        "params": {"quantize": {"block_size": 32}},
        "tools": {"torch": "2.12"},
    }
    new = {
        "version": 2,
        "inputs": {"a": "2"},
        "params": {"quantize": {"block_size": 64}},
        "tools": {"torch": "2.13"},
    }
    told = [
        "phipipe's own step",
        "input a",
        "params.quantize.block_size 32 → 64",
        "torch 2.12 → 2.13",
    ]
    assert why.differences(old, new) == told
    assert why.differences({"host": {"cores": 2}}, {"host": {"cores": 4}}) == ["host.cores 2 → 4"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"x": "a" * 50 + "1"}, {"x": "a" * 50 + "2"}, "params.x …aaaaaaaaaa1 → …aaaaaaaaaa2"),
        ({"x": 1}, {"x": "1"}, 'params.x 1 → "1"'),
        ({"x": True}, {"x": "true"}, 'params.x true → "true"'),
        ({"x": True}, {"x": 1}, "params.x true → 1"),
        ({}, {"x": "absent"}, 'params.x absent → "absent"'),
        ({"x": [1, 2]}, {"x": [1, 3]}, "params.x[1] 2 → 3"),
        ({"x": [1]}, {"x": [1, 3]}, "params.x [1] → [1, 3]"),
        ({"a.b": 1}, {"a.b": 2}, 'params["a.b"] 1 → 2'),
        ({"x": "\x1b[2J"}, {"x": ""}, 'params.x "\\u001b[2J" → ""'),
        ({"steps": {"a": 1}}, {"steps": {"a": 2}}, "params.steps.a 1 → 2"),
    ],
)
def test_values_are_told_apart(old: dict[str, Any], new: dict[str, Any], told: str) -> None:
    assert why.differences({"params": old}, {"params": new}) == [told]


def test_what_means_the_same_is_no_difference() -> None:
    assert why.differences({"params": {"x": 1, "y": [0.0]}}, {"params": {"y": [0], "x": 1.0}}) == []


@given(
    st.dictionaries(NAMES, NESTED, max_size=4),
    st.lists(NAMES, min_size=1, max_size=4),
    LEAVES,
    LEAVES,
)
def test_the_leaf_that_is_shown_is_the_one_that_differs(
    shared: dict[str, Any], path: list[str], before: Any, after: Any
) -> None:
    assume(keys.canonical(before) != keys.canonical(after))
    old, new = json.loads(json.dumps(shared)), json.loads(json.dumps(shared))
    for side, value in ((old, before), (new, after)):
        inner = side
        for name in path[:-1]:
            inner[name] = inner[name] if isinstance(inner.get(name), dict) else {}
            inner = inner[name]
        inner[path[-1]] = value
    (told,) = why.differences({"params": old}, {"params": new})
    where, _, values = told.partition(" ")
    assert where == ".".join(["params", *path])
    first, _, second = values.partition(" → ")
    assert first != second
    assert values.isprintable()
    assert max(len(first), len(second)) <= why.WIDTH + 2 * len("…")


@given(st.dictionaries(NAMES, NESTED, max_size=4), st.dictionaries(NAMES, NESTED, max_size=4))
def test_whatever_two_records_hold_every_difference_is_seen(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    found = list(why.leaves(old, new, "params"))
    assert bool(found) == (keys.canonical(old) != keys.canonical(new))
    for _, before, after in found:
        first, _, second = why.shown(before, after).partition(" → ")
        assert first != second


# --- what is compared with what


def build(folder: Path, content: str, limit: float, name: str, recipe_name: str) -> Plan:
    """A checkpoint and a light step that reads it."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    report = {"metrics": {"kld_mean": 0.0}, "sanity": {"tokenizer_equal": True}, "content": content}
    (folder / name / "metrics.json").write_text(json.dumps(report))
    files = Outside(folder / name, ("metrics.json",))
    source = Step(name="source", runs="hub/take", version=1, outside={"files": files}, copies=True)
    check = Step(
        name="check",
        runs="evaluate/check_parity",
        version=1,
        needs={"metrics": "source"},
        params={"kld_mean": limit},
    )
    steps = tuple(replace(step, recipe=recipe_name) for step in (source, check))
    return replace(planned(f"name={recipe_name}"), steps=steps)


def reasons(made: Plan, store: Store) -> list[str]:
    return [item.why for item in Bench(store, Settings.read(), print).foresee(made)]


@pytest.fixture
def store(own_cache: Path) -> Store:
    return Store(own_cache)


def run(made: Plan, store: Store) -> None:
    (outcome,) = attempt([made], store, Settings.read(), Silent())
    assert outcome.error is None


def test_a_step_is_compared_with_results_of_its_model_or_recipe_only(
    tmp_path: Path, store: Store
) -> None:
    run(build(tmp_path, "one", 0.1, "one", "mine"), store)
    assert reasons(build(tmp_path, "one", 0.2, "one", "mine"), store) == [
        "",
        "changed: params.kld_mean 0.1 → 0.2",
    ]
    assert reasons(build(tmp_path, "one", 0.2, "one", "other"), store) == [
        "",
        "changed: params.kld_mean 0.1 → 0.2",
    ]
    assert reasons(build(tmp_path, "two", 0.2, "two", "mine"), store)[0] == "changed: input files"
    assert reasons(build(tmp_path, "two", 0.2, "two", "other"), store)[0] == "first time"
    run(build(tmp_path, "two", 0.2, "two", "third"), store)
    assert (
        reasons(build(tmp_path, "two", 0.3, "two", "other"), store)[1]
        == "changed: params.kld_mean 0.2 → 0.3"
    )


def test_whose_step_it_is_changes_no_key(tmp_path: Path, store: Store) -> None:
    run(build(tmp_path, "one", 0.1, "one", "mine"), store)
    assert reasons(build(tmp_path, "one", 0.1, "one", "other"), store) == ["", ""]


def test_every_step_of_a_plan_says_whose_it_is() -> None:
    assert {step.recipe for step in planned().steps} == {"quickstart"}


def test_records_from_when_steps_had_addresses_are_listed_and_not_matched(
    tmp_path: Path, store: Store
) -> None:
    made = build(tmp_path, "one", 0.1, "one", "mine")
    earlier = "phipipe.evaluate.fidelity:check_parity"
    record = {"format": 1, "runs": earlier, "version": 1, "params": {}, "inputs": {}}
    with store.session(), store.scratch() as scratch:
        (scratch / "out").mkdir()
        (scratch / "out" / "parity.json").write_text("{}")
        store.commit("ab" * 32, scratch / "out", {**record, "tools": {}, "step": "check"})
    run(made, store)
    assert reasons(made, store) == ["", ""]
    listed = {row.runs for row in store.usage()}
    assert listed == {earlier, "evaluate/check_parity", "hub/take"}
    assert hostile_paths.outcome(["cache", "ls"])[0] == 0
