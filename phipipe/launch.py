"""How a child of ours is started in any Python: phipipe is importable there, and nothing installed beside it."""

from __future__ import annotations

from pathlib import Path

BOOTSTRAP = """
import importlib.util, os, sys
folder = sys.argv.pop()
spec = importlib.util.spec_from_file_location(
    "phipipe", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
sys.modules["phipipe"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""


def python_command(python: Path, call: str, *arguments: str) -> list[str]:
    """The command that runs ``call`` in ``python`` with phipipe, alone, importable."""
    return [str(python), "-P", "-c", BOOTSTRAP + call, *arguments, str(Path(__file__).parent)]
