"""Every family member on every backend: planned as a user's build is, converted, compared with
transformers.

The cells are those of the README's table. One process per toolchain does all members.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from testing.drive import drive
from testing.family_builds import (
    BUILDS,
    NEAR,
    THREADS,
    WINDOWS,
    expect_refusal,
    job,
    measured,
    name_of,
    plan_of,
)
from testing.family_checkpoints import MEMBERS, slug
from testing.neighbour_checkpoints import MEMBERS as NEIGHBOURS

from phipipe import backends
from phipipe.errors import TargetError
from phipipe.evaluate.gates import PARITY_KLD_MEAN
from phipipe.maintain import support_tables
from phipipe.models import checkpoints as models
from phipipe.models import family, family_sizes

LIMIT = PARITY_KLD_MEAN
APART = {member.row for member in NEIGHBOURS}  # test_neighbours.py has those
CELLS = [cell for cell in support_tables.cells() if cell.row not in APART]
# These take seconds for each conversion: the last member of a row speaks for it.
SLOW = ("litert", "openvino")
CHOSEN = {
    b: MEMBERS if b not in SLOW else tuple({m.row: m for m in MEMBERS}.values()) for b in BUILDS
}
AGAIN = {  # also as transformers 5 saves them
    "onnxruntime": ("Phi-2", "Phi-3-mini-4k", "Phi-3.5-mini", "Phi-4-mini"),
    "openvino": ("Phi-4-mini", "Phi-3.5-MoE"),
    "mlx": ("Phi-2", "Phi-3-mini-4k", "Phi-3.5-mini", "Phi-4-mini"),
    "llamacpp": ("Phi-2", "Phi-3.5-mini", "Phi-4"),
}
# Limits of the backends: what they refuse for windows of 400 tokens.
REFUSED_LONG = {
    ("llamacpp", "Phi-3-mini-4k"): "M09",
    ("llamacpp", "Phi-3-medium-4k"): "M09",
    ("mlx", "Phi-3-mini-4k"): "M09",
    ("mlx", "Phi-3-medium-4k"): "M09",
    ("qnn", "Phi-3-mini-4k"): "Q12",
    ("qnn", "Phi-3-medium-4k"): "Q12",
    ("litert", "Phi-3-medium-4k"): "R04",
    ("litert", "Phi-3-medium-128k"): "R04",
    ("litert", "Phi-4-mini"): "R04",
}
# Conversions without the fix-up: proof that it is needed, and that the comparison would notice.
BARE = {
    "onnxruntime": [("Phi-3-mini-4k", "source", "long"), ("Phi-3-medium-128k", "source", "short")],
    "openvino": [("Phi-3-medium-128k", "source", "short")],
    "mlx": [("Phi-3.5-mini", "source", "short"), ("Phi-4-mini", "resaved", "long")],
}
pytestmark = pytest.mark.timeout(600)


def wanted(backend: str) -> list[tuple[str, str, str]]:
    """(member, kind of source, window) of everything that is to work."""
    works = {cell.row for cell in CELLS if cell.backend == backend and cell.works}
    chosen = [(m.name, "source") for m in CHOSEN[backend] if m.row in works]
    chosen += [(name, "resaved") for name in AGAIN.get(backend, ())]
    found = [(name, kind, window) for name, kind in chosen for window in WINDOWS]
    return [case for case in found if case[2] == "short" or (backend, case[0]) not in REFUSED_LONG]


@pytest.fixture(scope="session")
def checkpoints(python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all members' small checkpoints."""
    root = tmp_path_factory.mktemp("family")
    drive(python_of("torch"), "-m", "testing.family_checkpoints", root, **THREADS)
    return root


def chosen_by(item: pytest.Item) -> tuple[Any, ...] | None:
    """The words of the job that a test of this session looks at: nothing else is computed."""
    told = item.callspec.params if hasattr(item, "callspec") and item.path == Path(__file__) else {}
    if "kind" in told:
        return told["backend"], told["member"], told["kind"], told["window"]
    return (told["backend"], *told["case"], True) if "case" in told else None


@pytest.fixture(scope="session")
def found(
    checkpoints: Path, python_of: Callable[[str], Path], request: pytest.FixtureRequest
) -> Callable[[str], dict[str, Any]]:
    """What the driver found out about a backend's jobs, by their names; run when it is first asked
    for."""

    @cache
    def facts(backend: str) -> dict[str, Any]:
        chosen = (chosen_by(item) for item in request.session.items)
        jobs = [job(checkpoints, *words) for words in chosen if words and words[0] == backend]
        return measured(checkpoints, backend, jobs, python_of)

    return facts


# llama.cpp last: it is compiled beside these.
CASES = [(b, *case) for b in sorted(BUILDS, key="llamacpp".__eq__) for case in wanted(b)]
RESAVED = ("onnxruntime", "Phi-4-mini", "resaved", "short")  # the others of its kind run at night


# The first of a backend's waits for its toolchain, and for all of its builds.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("backend", "member", "kind", "window"),
    [
        pytest.param(*c, marks=pytest.mark.nightly if c[2] == "resaved" and c != RESAVED else ())
        for c in CASES
    ],
    ids=str,
)
def test_what_the_table_promises_is_exact(
    found: Callable[[str], dict[str, Any]], backend: str, member: str, kind: str, window: str
) -> None:
    facts = found(backend)[name_of(member, kind, window)]
    assert "error" not in facts, facts["error"][-3000:]
    assert facts["kld"] < LIMIT
    assert facts["tokenizer"], "the packaged tokenizer gives the original's ids"
    assert len(facts["gaps"]) == facts["answers"]
    assert max(facts["gaps"]) < NEAR, "with a cache, the answer is what the logits say"


def test_every_working_cell_of_the_table_is_among_them() -> None:
    rows = {m.name: m.row for m in MEMBERS}
    tested = {
        (rows[member], backend) for backend, member, kind, window in CASES if kind == "source"
    }
    # test_vision*.py have those of models that see
    tested |= {
        (member.row, backend)
        for backend in backends.names()
        for member in family.MEMBERS
        if member.config["architectures"][0] in backends.load(backend).vision
    }
    assert {(cell.row, cell.backend) for cell in CELLS if cell.works} == tested
    assert {cell.backend for cell in CELLS} == set(BUILDS)
    rows = {member.row for member in family.MEMBERS}
    assert {cell.row for cell in CELLS} == rows - APART


@pytest.mark.parametrize(("backend", "case"), [(b, c) for b in BARE for c in BARE[b]], ids=str)
def test_without_the_fix_up_it_fails_or_differs(
    found: Callable[[str], dict[str, Any]], backend: str, case: tuple[str, str, str]
) -> None:
    facts = found(backend)[name_of(*case, bare=True)]
    assert "error" in facts or facts["kld"] > 1000 * LIMIT or max(facts["gaps"]) > 10 * NEAR


@pytest.mark.parametrize(
    "cell", [c for c in CELLS if not c.works], ids=lambda c: f"{c.row}-{c.backend}"
)
def test_every_other_cell_is_refused_with_its_reason(
    cell: support_tables.Cell, tmp_path: Path
) -> None:
    expect_refusal(cell, tmp_path)


@pytest.mark.parametrize(("backend", "member"), REFUSED_LONG)
def test_windows_beyond_a_backends_limit_are_refused(
    checkpoints: Path, backend: str, member: str
) -> None:
    with pytest.raises(TargetError) as refused:
        plan_of(checkpoints / slug(member) / "source", backend, "long")
    assert f"[{REFUSED_LONG[backend, member]}]" in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_the_config_alone_tells_what_the_weights_are(
    checkpoints: Path, member: family.Member
) -> None:
    for kind in ("source", "resaved"):
        read = models.read(checkpoints / slug(member.name) / kind)
        assert read.parameters == family_sizes.parameters(read.config)
        assert read.longrope == bool(member.config.get("rope_scaling"))
        assert read.partial_rotary_factor == member.config.get("partial_rotary_factor", 1.0)
        assert read.rope_theta == member.config["rope_theta"]
    assert models.read(checkpoints / slug(member.name) / "source").tokenizer == (member.tokenizer)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_the_baseline_computes_every_member_layer_by_layer(
    checkpoints: Path, member: family.Member
) -> None:
    told = json.loads((checkpoints / slug(member.name) / "told.json").read_text("utf-8"))
    assert max(told["layerwise"]) < 1e-4
    whole, by_layer = told["answered"]
    assert whole == by_layer
