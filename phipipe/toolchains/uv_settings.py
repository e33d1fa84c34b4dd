"""What uv is told, and what of its answers may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping

from phipipe import hardware
from phipipe.settings import installer_environment
from phipipe.toolchains.compiling import CMAKE_ARGS

# uv waits that long for another that compiles the same package; its own 300 s are too few for
# llama.cpp
LOCK_S = 3600
# Never installed, although a package asks for it: optimum-intel uses torchvision for pictures only,
# and the registry's build for CUDA breaks `import transformers` beside a torch for CPUs.
EXCLUDED = ("torchvision",)
# Any of these says that the user decides where packages come from, torch included.
INDEX_SETTINGS = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_TORCH_BACKEND",
)


def environment() -> dict[str, str]:
    """What uv gets when it installs a toolchain."""
    variables = installer_environment()
    variables |= from_pip(variables)
    variables.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(hardware.cores()))
    variables.setdefault("CMAKE_ARGS", CMAKE_ARGS)
    variables.setdefault("UV_LOCK_TIMEOUT", str(LOCK_S))
    return variables


def from_pip(environ: Mapping[str, str]) -> dict[str, str]:
    """uv's own variables for settings that the user has made for pip, where uv has none."""
    pairs = {
        "PIP_FIND_LINKS": "UV_FIND_LINKS",
        "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
        "PIP_EXTRA_INDEX_URL": "UV_INDEX",
        "PIP_CERT": "SSL_CERT_FILE",
    }
    variables = {
        uv: environ[pip] for pip, uv in pairs.items() if environ.get(pip) and not environ.get(uv)
    }
    if "UV_FIND_LINKS" in variables:  # pip separates by spaces, uv by commas
        variables["UV_FIND_LINKS"] = ",".join(variables["UV_FIND_LINKS"].split())
    return variables


def redact(text: str) -> str:
    """``text`` without user names and passwords in URLs."""
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", text)
