"""What a choice of widths takes is what the plan of a build with that choice says, to the byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import BaseModel
from testing import choices

from phipipe import backends
from phipipe.backends.base import Job
from phipipe.backends.widths import Stored
from phipipe.models import linears
from phipipe.planning import learned, preparation, tuning
from phipipe.recipe.build import Build

STORING = [name for name in backends.names() if backends.load(name).codec]


ELSEWHERE = {"mlx": ("device=apple-silicon",), "qnn": ("device=snapdragon-x-npu",)}
WEIGHTS = ("{}", "{learn: gptq}", "{smooth: awq}")


def build_of(backend: str, weights: str) -> Build:
    where = ELSEWHERE.get(backend, ("device=cpu-x86_64",))
    (build,) = choices.builds(f"backend={backend}", *where, "quantize={}", f"weights={weights}")
    return build


def planned_bytes(job: Job[BaseModel], widths: dict[str, Stored]) -> int:
    """The artifact as a plan with ``widths`` counts it."""
    return learned.steps(replace(job, widths={**job.widths, **widths}))[-1].output_bytes


def is_possible(backend: str, weights: str) -> bool:
    stores = backends.load(backend).stores
    return "learn" not in weights or bool(stores and stores.learned)


@pytest.mark.parametrize(
    ("backend", "weights"), [(b, w) for b in STORING for w in WEIGHTS if is_possible(b, w)]
)
def test_the_bytes_of_every_choice_are_the_plans(backend: str, weights: str) -> None:
    build = build_of(backend, weights)
    plan = preparation.prepare(build, elsewhere=True)
    job = preparation.job_of(build, plan.whole)
    scope = tuning.scope(build, job)
    base = {
        name: next(iter(group.widths.values()))
        for group in scope.groups.values()
        for name in group.matrices
    }
    assert planned_bytes(job, base) == scope.base_bytes
    kinds: set[str] = set()
    for name, group in scope.groups.items():
        if linears.kind_of(name) in kinds:  # layers of this model have the same shapes
            continue
        kinds.add(linears.kind_of(name))
        for label, stored in group.widths.items():
            changed = {**base, **dict.fromkeys(group.matrices, stored)}
            found = planned_bytes(job, changed) - scope.base_bytes
            assert found == group.size_bytes[label], (name, label)


# Bytes of the smallest file of the embedded model, as each toolchain wrote it once.
SMALLEST = {
    "litert": 3_304_507,
    "onnxruntime": 3_461_633,
    "openvino": 3_445_259,
    "llamacpp": 2_262_245,
    "mlx": 1_671_285,
    "torch": 3_702_289,
    "qnn": 6_229_076,
}


@pytest.mark.parametrize("backend", STORING)
def test_what_a_file_may_take_beside_its_weights_is_enough(backend: str) -> None:
    build = build_of(backend, "{}")
    plan = preparation.prepare(build, elsewhere=True)
    scope = tuning.scope(build, preparation.job_of(build, plan.whole))
    assert scope.smallest_bytes < SMALLEST[backend] <= scope.smallest_bytes + scope.beside_bytes


def test_a_graph_with_tables_grows_with_the_context() -> None:
    found = {}
    for backend in ("onnxruntime", "openvino"):
        build = build_of(backend, "{}")
        whole = preparation.prepare(build, elsewhere=True).whole
        for context in (2048, 131_072):
            job = preparation.job_of(build, replace(whole, context_length=context))
            found[backend, context] = tuning.scope(build, job).beside_bytes
    more = 2 * 4 * (131_072 - 2048) * whole.head_size // 2
    assert found["onnxruntime", 131_072] - found["onnxruntime", 2048] == more
    assert found["openvino", 131_072] == found["openvino", 2048]
