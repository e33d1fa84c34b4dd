"""What ``import phipipe`` gives, and what it costs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest
from testing.places import ROOT

import phipipe

# What every Python has loaded when it starts, with the packages of a virtual environment.
ALLOWED = {"phipipe", "__future__", "typing", "collections", "importlib"}
HEAVY = {"torch", "numpy", "transformers", "huggingface_hub", "IPython", "distributed", "prefect"}
NAMES = sorted(set(phipipe.__all__) - {"__version__"})


def loaded_by(code: str) -> set[str]:
    """Top-level modules that ``code`` loads in a fresh interpreter."""
    probe = (
        "import sys, json; before = {m.split('.')[0] for m in sys.modules}\n"
        f"{code}\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules} - before)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(json.loads(answer.stdout))


def test_import_phipipe_loads_no_other_package() -> None:
    loaded = loaded_by("import phipipe")
    assert "phipipe" in loaded
    assert {name for name in loaded if name not in sys.stdlib_module_names} == {"phipipe"}
    assert loaded <= ALLOWED | set(sys.stdlib_module_names)
    assert not loaded & {"subprocess", "asyncio", "logging", "email", "http"}


def test_all_names_together_load_nothing_heavy() -> None:
    assert not loaded_by(f"from phipipe import {', '.join(NAMES)}") & HEAVY


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(phipipe, name)
    assert name in dir(phipipe)
    assert inspect.getdoc(value) or issubclass(value, Exception)


def test_every_public_method_says_what_it_does() -> None:
    silent = [
        f"{name}.{own}"
        for name in NAMES
        if inspect.isclass(kind := getattr(phipipe, name))
        and kind.__module__.startswith("phipipe.api")
        for own, value in vars(kind).items()
        if not own.startswith("_") and (callable(value) or isinstance(value, property))
        if not inspect.getdoc(value)
    ]
    assert silent == []


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="`nothing_like_it`"):
        _ = phipipe.nothing_like_it  # type: ignore[attr-defined]


def test_rooms_can_still_be_imported_by_their_names() -> None:
    code = "import phipipe; phipipe.plan; import phipipe.planning.plan, phipipe.batch.batch"
    assert "phipipe" in loaded_by(f"{code}\nassert callable(phipipe.plan), phipipe.plan")
