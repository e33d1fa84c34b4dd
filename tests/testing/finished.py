"""Plans that deliver a package which is finished already: their one step copies it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phipipe import backends
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.steps import Step

STEPS = {"put": f"{__name__}:put"}
RECIPE = "name: {}\nsource: {{builtin: tiny-phi3}}\ndevice: cpu-x86_64\nprecision: int4\n"


def put(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """A light step: the package in the folder that ``params`` name."""
    shutil.copytree(params["folder"], out, dirs_exist_ok=True)


def recipe(folder: Path, more: str, name: str = "quickstart") -> Path:
    """A recipe that says ``more`` than it must."""
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(name) + more, "utf-8")
    return path


def plan(package: Path, path: Path) -> Plan:
    """What delivers ``package`` as the recipe at ``path`` has it."""
    (build,) = loading.load(path, options=backends.OptionsOf())
    step = Step(name="package", runs=f"{__name__}/put", version=1, params={"folder": str(package)})
    made: Any = Plan(build=build, device=None, api="cpu", on_target="false", steps=(step,))  # type: ignore[arg-type]
    return made  # type: ignore[no-any-return]
