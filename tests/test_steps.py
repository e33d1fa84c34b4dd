"""Steps are known by names: every one has its function, no plan has another, and a function may
move without any stored result being made again."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testing.planned_steps import all_steps

import phipipe
from phipipe import backends, steps
from phipipe.cli.listeners import Silent
from phipipe.errors import StepFailed
from phipipe.execution.dispatch import attempt
from phipipe.execution.manner import Manner
from phipipe.execution.process import Request, Server
from phipipe.execution.results import Result
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.steps import Step
from phipipe.store.store import Store
from phipipe.vision import kinds

PACKAGE = Path(phipipe.__file__).parent
NAME = re.compile(r"[a-z]+/[a-z]+(_[a-z]+)*")
OWN = {f"{name}/{verb}" for name in backends.names() for verb in steps.own_steps(name)}
NAMES = {*steps.ADDRESSES, *OWN}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_has_a_function_that_takes_what_a_step_gets(name: str) -> None:
    assert NAME.fullmatch(name)
    assert parameters(steps.address(name)) == ["inputs", "out", "params"]


def parameters(address: str) -> list[str]:
    """Of the function at ``address``, read from its module's source: a toolchain alone may be able
    to import that."""
    module, _, function = address.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    (found,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    return [argument.arg for argument in found.args.args]


def test_no_two_names_mean_one_function() -> None:
    assert len({steps.address(name) for name in NAMES}) == len(NAMES)


def test_what_a_backend_owns_stands_in_its_own_face() -> None:
    assert not {name.partition("/")[0] for name in steps.ADDRESSES} & set(backends.names())


def test_no_plan_has_another_name() -> None:
    runs = {step.runs for step in all_steps()}
    assert len(runs) > 10
    assert runs <= NAMES


def test_tables_have_no_other_name() -> None:
    emulated = {s for name in backends.names() for s in backends.load(name).emulated.values()}
    seeing = {
        name for backend in backends.names() for name in backends.load(backend).vision.values()
    }
    assert emulated | seeing | {kind.cut for kind in kinds.KINDS.values()} <= NAMES


def test_a_step_of_no_backend_is_there_without_any() -> None:
    code = "import json, sys; from phipipe import steps; steps.address('evaluate/compare'); "
    code += "print(json.dumps([name for name in sys.modules if name.startswith('phipipe')]))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert set(json.loads(answer.stdout)) == {"phipipe", "phipipe.steps"}


@pytest.mark.parametrize(
    "name",
    ["evaluate/nothing", "torch/nothing", "nowhere/cast", "base/staged", "os/system", "torch", "",
     "/", "../hub/take", "phipipe.hub.take:take", "phipipe.hub/take"],
)  # fmt: skip
def test_an_unknown_name_is_named(name: str) -> None:
    with pytest.raises(LookupError, match=re.escape(f"no step is called `{name}`")):
        steps.resolve(name)


def test_a_worker_that_is_asked_for_an_unknown_step_says_so(tmp_path: Path) -> None:
    request = Request(step="odd", runs="evaluate/nothing", inputs={}, params={})
    settings = Settings.read({"PHIPIPE_CACHE": str(tmp_path)})
    python, logs = Path(sys.executable), tmp_path / "logs"
    worker = Server(python, name="test", log_folder=logs, settings=settings)
    with worker, pytest.raises(StepFailed, match="no step is called `evaluate/nothing`"):
        worker.run(request, tmp_path)


# --- moving a step's function


MODULE = """
def cast(inputs, out, params):
    (out / "made.txt").write_text(params["word"] + __name__)
"""


def chain(toolchain: str | None) -> Plan:
    """A build of two made-up steps."""
    first = Step(
        name="first", runs="madeup/cast", version=1, params={"word": "a"}, toolchain=toolchain
    )
    second = Step(
        name="second", runs="madeup/cast", version=1, needs={"x": "first"}, params={"word": "b"}
    )
    recipe = SimpleNamespace(backend="none", cache=SimpleNamespace(keep=None))
    build: Any = SimpleNamespace(name="moved", recipe=recipe)
    return Plan(build=build, device=None, api="cpu", on_target="false", steps=(first, second))  # type: ignore[arg-type]


def build(cache: Path, planned: Plan) -> dict[str, Result]:
    (outcome,) = attempt([planned], Store(cache), Settings.read(), Silent(), Manner(jobs=1))
    assert outcome.error is None, outcome.error
    return outcome.results


@pytest.mark.parametrize("toolchain", [None, "torch"])
def test_a_step_whose_module_is_renamed_is_still_cached(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toolchain: str | None
) -> None:
    monkeypatch.setenv("PHIPIPE_TOOLCHAIN", "current")
    monkeypatch.setenv("PHIPIPE_WORKER_PATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)

    def lay(module: str) -> None:
        (tmp_path / f"{module}.py").write_text(MODULE, "utf-8")
        face = f"STEPS = {{'cast': '{module}:cast'}}  # {len(module)}"
        (tmp_path / "madeup.py").write_text(face, "utf-8")
        monkeypatch.delitem(sys.modules, "madeup", raising=False)

    lay("old_place")
    before = build(own_cache, chain(toolchain))
    assert not any(result.cached for result in before.values())
    made = before["first"].stored.path / "made.txt"
    assert made.read_text() == "aold_place"

    (tmp_path / "old_place.py").unlink()
    lay("another_place")
    after = build(own_cache, chain(toolchain))
    assert all(result.cached for result in after.values())
    assert {n: r.key for n, r in after.items()} == {n: r.key for n, r in before.items()}
    record = Store(own_cache).record(before["first"].key)
    assert record["runs"] == "madeup/cast"
    assert "old_place" not in json.dumps(record)

    altered = build(
        own_cache / "fresh", chain(toolchain)
    )  # and the function is run where it is now
    assert (altered["first"].stored.path / "made.txt").read_text() == "aanother_place"
    assert altered["first"].key == before["first"].key


def test_a_shared_steps_key_does_not_have_its_address(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> dict[str, str]:
        return {name: result.key for name, result in build(own_cache, pictures).items()}

    step = Step(name="pictures", runs="vision/draw_pictures", version=1)
    recipe = SimpleNamespace(backend="none", cache=SimpleNamespace(keep=None))
    named: Any = SimpleNamespace(name="moved", recipe=recipe)
    pictures = Plan(build=named, device=None, api="cpu", on_target="false", steps=(step,))  # type: ignore[arg-type]
    before = keys()
    monkeypatch.setattr(steps, "ADDRESSES", {"vision/draw_pictures": "phipipe.nowhere:gone"})
    assert keys() == before
