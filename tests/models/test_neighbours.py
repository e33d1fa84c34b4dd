"""Phi's neighbours on every backend: planned, converted, compared with transformers.

Two stand for all of them in the usual runs with toolchains: Phi-4 in Llama's layout, and Qwen3.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
    found_by,
    name_of,
    plan_of,
)
from testing.family_checkpoints import slug
from testing.neighbour_checkpoints import MEMBERS

from phipipe.errors import TargetError
from phipipe.evaluate.gates import PARITY_KLD_MEAN
from phipipe.maintain import support_tables
from phipipe.models import checkpoints as models
from phipipe.models import family, family_sizes, layouts
from phipipe.models.members import NEIGHBOUR

LIMIT = PARITY_KLD_MEAN
ROWS = {member.row for member in MEMBERS}
REPRESENTATIVES = ("Phi-4 as Llama", "Qwen3-0.6B")
QUICK = ("onnxruntime", "torch")  # OpenVINO takes many seconds for each conversion
CELLS = [cell for cell in support_tables.cells() if cell.row in ROWS]
# Limits of the backends: what they refuse for windows of 400 tokens.
REFUSED_LONG = {
    ("llamacpp", "Mistral-7B-v0.1"): "M09",
    ("mlx", "Mistral-7B-v0.1"): "M09",
    ("qnn", "Mistral-7B-v0.1"): "Q12",
    ("litert", "Mistral-7B-v0.1"): "R04",
}
# Runtimes that read decomposed accents as they stand, where a tokenizer joins them first.
UNNORMALIZED = ("onnxruntime", "llamacpp", "qnn")
AGAIN = ("Phi-4 as Llama", "Llama-3.2-1B", "Qwen3-0.6B", "SmolLM3-3B")  # as transformers 5 saves
pytestmark = pytest.mark.timeout(600)


def wanted(backend: str) -> list[tuple[str, str, str]]:
    """(member, kind of source, window) of everything that is to work."""
    works = {cell.row for cell in CELLS if cell.backend == backend and cell.works}
    chosen = [m.name for m in MEMBERS if m.row in works]
    cases = [(name, "source", window) for name in chosen for window in WINDOWS]
    cases += [(name, "resaved", "short") for name in chosen if name in AGAIN]
    return [case for case in cases if case[2] == "short" or (backend, case[0]) not in REFUSED_LONG]


CASES = [(b, *case) for b in sorted(BUILDS, key="llamacpp".__eq__) for case in wanted(b)]


def is_usual(backend: str, member: str, kind: str, window: str) -> bool:
    """Whether a case is in each run that has toolchains; the others are at night."""
    return backend in QUICK and member in REPRESENTATIVES and kind == "source"


@pytest.fixture(scope="session")
def checkpoints(
    python_of: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    """The folder of the small checkpoints that this session's tests look at."""
    root = tmp_path_factory.mktemp("neighbours")
    told = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    names = {params["member"] for params in told if isinstance(params.get("member"), str)}
    chosen = sorted(names.intersection(m.name for m in MEMBERS))
    drive(python_of("torch"), "-m", "testing.neighbour_checkpoints", root, *chosen, **THREADS)
    return root


@pytest.fixture(scope="session")
def found(
    checkpoints: Path, python_of: Callable[[str], Path], request: pytest.FixtureRequest
) -> Callable[[str], dict[str, Any]]:
    """What the driver found out about a backend's jobs, by their names."""
    words = ("backend", "member", "kind", "window")
    return found_by(checkpoints, __file__, words, request, python_of)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("backend", "member", "kind", "window"),
    [pytest.param(*c, marks=() if is_usual(*c) else pytest.mark.nightly) for c in CASES],
    ids=str,
)
def test_what_the_table_promises_is_exact(
    found: Callable[[str], dict[str, Any]], backend: str, member: str, kind: str, window: str
) -> None:
    facts = found(backend)[name_of(member, kind, window)]
    assert "error" not in facts, facts["error"][-3000:]
    assert facts["kld"] < LIMIT
    assert len(facts["gaps"]) == facts["answers"]
    assert max(facts["gaps"]) < NEAR, "with a cache, the answer is what the logits say"
    joins = member.startswith("Qwen") and backend in UNNORMALIZED
    read = facts["composed" if joins else "tokenizer"]
    assert read, "the packaged tokenizer gives the original's ids"


@pytest.mark.parametrize("cell", [c for c in CELLS if not c.works], ids=lambda c: c.row + c.backend)
def test_every_other_cell_is_refused_with_its_reason(
    cell: support_tables.Cell, tmp_path: Path
) -> None:
    expect_refusal(cell, tmp_path)


def test_every_neighbour_has_a_small_checkpoint_in_its_row() -> None:
    assert {m.row for m in family.MEMBERS if m.group == NEIGHBOUR} <= ROWS
    assert {cell.backend for cell in CELLS} == set(BUILDS)


@pytest.mark.parametrize(
    "member", [m for m in family.MEMBERS if m.row in ROWS], ids=lambda m: m.name
)
def test_a_config_says_how_many_weights_its_tensors_have(member: family.Member) -> None:
    shape = models.of_config(member.config, member.tokenizer)
    wanted = layouts.wanted(layouts.LAYOUTS[shape.architecture], layouts.sizes_of(shape))
    total = 0
    for lengths in wanted.values():
        count = 1
        for length in lengths:
            count *= length
        total += count
    assert total == shape.parameters
    assert family.of(member.config) is member


@pytest.mark.nightly
@pytest.mark.parametrize(("backend", "member"), REFUSED_LONG)
def test_windows_beyond_a_backends_limit_are_refused(
    checkpoints: Path, backend: str, member: str
) -> None:
    with pytest.raises(TargetError) as refused:
        plan_of(checkpoints / slug(member) / "source", backend, "long")
    assert f"[{REFUSED_LONG[backend, member]}]" in refused.value.message


NAMES = [
    pytest.param(m.name, marks=() if m.name in REPRESENTATIVES else pytest.mark.nightly)
    for m in MEMBERS
]


@pytest.mark.parametrize("member", NAMES)
def test_the_config_alone_tells_what_the_weights_are(checkpoints: Path, member: str) -> None:
    read = models.read(checkpoints / slug(member) / "source")
    assert read.parameters == family_sizes.parameters(read.config)


@pytest.mark.parametrize("member", NAMES)
def test_the_baseline_computes_every_neighbour_layer_by_layer(
    checkpoints: Path, member: str
) -> None:
    told = json.loads((checkpoints / slug(member) / "told.json").read_text("utf-8"))
    assert max(told["layerwise"]) < 1e-4
    whole, by_layer = told["answered"]
    assert whole == by_layer
