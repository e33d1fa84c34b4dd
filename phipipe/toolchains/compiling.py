"""What is compiled here because no index has it ready: what of it, how, and how far it is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# toolchain → its package that comes as source code
COMPILED: Mapping[str, str] = {"llamacpp": "llama-cpp-python"}
# A library alone: no pictures, which we do not use, and nothing for programs.
CMAKE_ARGS = shlex.join(
    (
        "-DLLAVA_BUILD=OFF",
        f"-DCMAKE_PROJECT_INCLUDE={(Path(__file__).parent / 'only_library.cmake').as_posix()}",
    )
)
# By default llama.cpp is compiled for the very processor it is compiled on, and crashes on a
# lesser one. This makes it run on every x86-64 with AVX2, and on every 64-bit Arm.
PORTABLE = "cmake.define.GGML_NATIVE=OFF"
UNIT = "compile steps"
# uv says `DEBUG ` and the compiler's line: ninja counts its steps, make gives per cent
_STEP = re.compile(r"DEBUG \[\s*(\d+)(?:/(\d+)|%)\]")
_LOG = re.compile(r"(TRACE|DEBUG|INFO) ")


class Done(NamedTuple):
    """How many of how many compile steps are done."""

    done: int
    total: int


def read(line: str) -> Done | None:
    """How far the compiler is, if this line of uv's tells it."""
    found = _STEP.match(line)
    if found is None:
        return None
    done, total = int(found[1]), int(found[2] or 100)
    return Done(done, total) if total > 0 and done <= total else None


def is_log(line: str) -> bool:
    """Whether a line of uv's is there for ``--verbose`` alone."""
    return _LOG.match(line) is not None
