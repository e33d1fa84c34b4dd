"""Functions of optimum and NNCF that do something else while we call them.

Neither offers a way to look at the graph before it is written, or to keep what is rounded out of
memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from types import ModuleType
from unittest import mock

from phipipe.errors import ToolchainError

# Module → its package, and the version that our functions were written for.
PINNED: Mapping[str, tuple[str, str]] = {
    "nncf.openvino.quantization.quantize_model": ("nncf", "3.4"),
    "nncf.quantization.algorithms.weight_compression.openvino_backend": ("nncf", "3.4"),
    "optimum.exporters.openvino.convert": ("optimum-intel", "2.2"),
}


@contextlib.contextmanager
def replaced(module: ModuleType, functions: Mapping[str, object]) -> Iterator[None]:
    """Have ``module`` call ``functions`` in place of its own of these names.

    Raises:
        ToolchainError: its package is of another version than the one that this was written for.
    """
    package, version = PINNED[module.__name__]
    installed = metadata.version(package)
    if not installed.startswith(f"{version}."):
        raise ToolchainError(
            f"phipipe changes functions of {package} {version}, and {installed} is installed",
            hint="phipipe toolchain install openvino",
        )
    with contextlib.ExitStack() as replacements:
        for name, function in functions.items():
            replacements.enter_context(mock.patch.object(module, name, function))
        yield
