"""Runs in a toolchain: imports the modules of steps, and what their functions import when they are
called, without calling them.

    python step_imports.py STEP …

Prints why a step could not be run there, as JSON by its name.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from phipipe import steps

Definition = ast.FunctionDef | ast.ClassDef


def main(names: list[str]) -> None:
    failures = {name: str(why) for name in names if (why := failure(name)) is not None}
    print(json.dumps(failures))


def failure(name: str) -> BaseException | None:
    """What keeps the step ``name`` from running here."""
    module, _, function = steps.address(name).partition(":")
    try:
        loaded = importlib.import_module(module)
        for statement in reached(Path(str(loaded.__file__)), function):
            perform(statement)
    except (ImportError, AttributeError) as error:
        return error
    return None


def reached(file: Path, function: str) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports inside ``function`` of the module in ``file``, and inside those of the module's own
    functions and classes that it names; but those under an `if`, which some runs never reach."""
    tree = ast.parse(file.read_text("utf-8"))
    known = {node.name: node for node in tree.body if isinstance(node, Definition)}
    waiting, seen = [function], {function}
    while waiting:
        for node in unconditional(known[waiting.pop()]):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node
            elif isinstance(node, ast.Name) and node.id in known.keys() - seen:
                seen.add(node.id)
                waiting.append(node.id)


def unconditional(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and all in it; of an `if`, its condition alone."""
    yield node
    for inner in [node.test] if isinstance(node, ast.If) else ast.iter_child_nodes(node):
        yield from unconditional(inner)


def perform(statement: ast.Import | ast.ImportFrom) -> None:
    """Import what ``statement`` does.

    Raises:
        ImportError: it is not here.
    """
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            importlib.import_module(alias.name)
        return
    module = importlib.import_module(str(statement.module))
    for alias in statement.names:
        if not has(module, alias.name):
            importlib.import_module(f"{statement.module}.{alias.name}")


def has(module: ModuleType, name: str) -> bool:
    return name == "*" or hasattr(module, name)


if __name__ == "__main__":
    main(sys.argv[1:])
