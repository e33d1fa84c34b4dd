"""What `plan` says of the matrices of a map: their bytes are those that the plan counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import documents
from testing.places import QUICKSTART
from testing.plans import planned
from testing.shell import Run

from phipipe import backends
from phipipe.backends.widths import Width
from phipipe.models import linears
from phipipe.planning.plan import Plan

STORING = [name for name in backends.names() if backends.load(name).stores]
DEVICES = {"mlx": "apple-silicon", "qnn": "snapdragon-x-npu"}
GRAPH_BYTES = {"qnn": 2**20}  # what the plan counts for graphs without weights
KINDS = ["lm_head", "embed_tokens", "layers.*.self_attn.*", "layers.1.*", "layers.*.down_proj"]


def plan(backend: str, chosen: dict[str, Any], *more: str) -> Plan:
    sets = (f"device={DEVICES.get(backend, 'cpu-x86_64')}", f"backend={backend}")
    return planned(*sets, f"quantize={json.dumps({'map': chosen})}", *more)


def rest(found: Plan) -> int:
    """What the artifact takes besides the matrices that are told."""
    assert found.fit is not None
    return found.fit.weight_bytes - sum(one.size_bytes for one in found.matrices)


def names(backend: str) -> list[str]:
    """Patterns that the backend can choose widths for."""
    stores = backends.load(backend).stores
    return [kind for kind in KINDS if stores and kind not in stores.fixed]


@st.composite
def maps(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A backend, and a width for each of its matrices."""
    backend = draw(st.sampled_from(STORING))
    stores = backends.load(backend).stores
    assert stores is not None
    groups = [size for size in (-1, 32, 64, 128) if size in stores.groups[8]]
    able = [*stores.groups, *([16] if stores.floats else [])]
    width = st.fixed_dictionaries(
        {"bits": st.sampled_from([b for b in (4, 8, 16) if b in able])},
        optional={"group_size": st.sampled_from(groups)},
    )
    chosen = {kind: draw(width) for kind in names(backend)}
    return backend, {"layers.0.*": draw(width), **chosen, "layers.*": draw(width)}


@settings(max_examples=15, deadline=None)
@given(maps(), st.booleans())
def test_what_the_map_does_not_name_takes_the_same_whatever_the_map_says(
    drawn: tuple[str, dict[str, Any]], asymmetric: bool
) -> None:
    backend, chosen = drawn
    able = backend in ("openvino", "onnxruntime")
    more = ["quantize.symmetric=false"] if asymmetric and able else []
    stores = backends.load(backend).stores
    widest = 16 if stores and stores.floats else 8
    found, usual = plan(backend, chosen, *more), plan(backend, _whole(backend, widest), *more)
    assert rest(found) == pytest.approx(rest(usual), abs=len(found.matrices) + 8)


def _whole(backend: str, bits: int) -> dict[str, Any]:
    return {kind: {"bits": bits} for kind in (*names(backend), "layers.*")}


@pytest.mark.parametrize("backend", STORING)
def test_with_all_matrices_in_the_map_only_norms_are_left(backend: str) -> None:
    found = plan(backend, _whole(backend, 8))
    shapes = linears.shapes(found.checkpoint)
    fixed = backends.load(backend).stores.fixed  # type: ignore[union-attr]
    named = sum(r * c for name, (r, c) in shapes.items() if name not in fixed)
    others = found.checkpoint.parameters - named
    assert 0 <= rest(found) <= 4 * others + 8 + GRAPH_BYTES.get(backend, 0)
    assert sum(one.count for one in found.matrices) == len(shapes.keys() - fixed)


@pytest.mark.parametrize("backend", [one for one in STORING if backends.load(one).stores.learned])  # type: ignore[union-attr]
def test_learned_weights_name_all_matrices(backend: str) -> None:
    device = DEVICES.get(backend, "cpu-x86_64")
    group = "quantize={}"
    found = planned(f"device={device}", f"backend={backend}", "weights={learn: round}", group)
    assert sum(one.count for one in found.matrices) == len(linears.shapes(found.checkpoint))
    kinds = {one.name: one.width for one in found.matrices}
    assert kinds["layers.*.mlp.down_proj"] == str(Width(bits=4, group_size=32))
    by_row = backend == "litert"
    assert kinds["lm_head"] == str(Width(bits=8, group_size=-1 if by_row else 32))


def test_one_kind_has_a_row_for_each_width() -> None:
    found = plan("llamacpp", {"layers.0.*.down_proj": "Q6_K", "*.down_proj": {"bits": 8}})
    (wide, rest_) = found.matrices
    assert (wide.name, wide.width, wide.count) == ("layers.*.mlp.down_proj", "Q6_K", 1)
    assert (rest_.name, rest_.width, rest_.count) == (wide.name, "8 bits", 4)
    assert rest_.size_bytes / 4 / wide.size_bytes == pytest.approx(8.5 / 6.5625, rel=1e-4)


@pytest.mark.parametrize("precision", ["int4", "fp32"])
def test_without_a_map_nothing_is_told(run: Run, precision: str) -> None:
    sets = ("--set", f"precision={precision}", "--set", "quantize={}")
    code, out, err = run("plan", QUICKSTART, *sets)
    assert code == 0, err
    assert "stored as" not in out
    (told,) = documents.fits(["plan"], run("plan", QUICKSTART, *sets, "--json")[1])
    assert (told["matrices"], told["matrices_bytes"]) == ([], 0)


def test_plan_shows_them_to_people_and_machines(run: Run) -> None:
    sets = ("--set", "quantize={map: {'*.down_proj': {bits: 8, group_size: 64}}}")
    code, out, err = run("plan", QUICKSTART, *sets)
    assert code == 0, err
    (row,) = [line.split() for line in out.splitlines() if "down_proj" in line]
    assert row[:6] == ["layers.*.mlp.down_proj", "5", "8", "bits", "in", "groups"]
    assert "these take 1020 KiB of the artifact's 5.4 MiB" in out
    (told,) = documents.fits(["plan"], run("plan", QUICKSTART, *sets, "--json")[1])
    (group,) = told["matrices"]
    assert (group["count"], group["width"]) == (5, "8 bits in groups of 64")
    assert told["matrices_bytes"] == group["size_bytes"] < told["fit"]["weight_bytes"]
