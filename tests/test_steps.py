"""Steps name their functions as text: every one that any plan can hold must be there, with the
right signature."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import phipipe
from phipipe import backends, device, plan, recipe_load
from phipipe.backends.base import Step
from phipipe.errors import TargetError

PACKAGE = Path(phipipe.__file__).parent
PRECISIONS = ("int4", "int8", "fp16", "fp32")
ADDRESS = re.compile(r"phipipe(?:\.\w+)+:\w+")


def addresses() -> set[str]:
    """Everything in the code that is written as a step's function; what limited children open is
    written alike."""
    nodes = [
        node
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    ]
    opened = [node.args[0] for node in nodes if isinstance(node, ast.Call) and opens(node)]
    written = (
        node.value for node in nodes if isinstance(node, ast.Constant) and node not in opened
    )
    return {text for text in written if isinstance(text, str) and ADDRESS.fullmatch(text)}


def opens(call: ast.Call) -> bool:
    """Whether it names what a limited child opens."""
    return ast.unparse(call.func) in {"limited_tokenizer.open_in_child", "limited.Opening"}


def planned() -> Iterator[Step]:
    """Steps of the recipe that needs no network, on every backend, at all precisions, on a device
    for each unit."""
    quickstart = PACKAGE.parent / "recipes" / "quickstart.yaml"
    devices = {unit.api: name for name in device.names() for unit in device.load(name).units}
    for backend in backends.names():
        for api, precision in itertools.product(sorted(backends.load(backend).APIS), PRECISIONS):
            sets = (
                f"backend={backend}",
                f"precision={precision}",
                f"device={devices[api]}",
                "quantize={}",
            )
            (build,) = recipe_load.load(
                quickstart, sets=(*sets, f"unit={api}"), options=backends.OptionsOf()
            )
            with contextlib.suppress(TargetError):  # no such combination: nothing is run
                yield from plan.prepare(build).steps


@pytest.mark.parametrize("address", sorted(addresses()))
def test_every_steps_function_is_there_and_takes_what_a_step_gets(address: str) -> None:
    module, _, name = address.partition(":")
    function = getattr(importlib.import_module(module), name)
    assert list(inspect.signature(function).parameters) == ["inputs", "out", "params"]


def test_no_plan_has_a_function_under_another_address() -> None:
    found = {step.runs for step in planned()}
    assert len(found) > 10
    assert found <= addresses()
