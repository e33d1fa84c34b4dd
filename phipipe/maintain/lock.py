"""Compiles each toolchain's lock from its extra in ``pyproject.toml``.

    python -m phipipe.maintain.lock [--check]

A lock holds for every platform and Python that the extra allows (environment markers), names no
index, and leaves what torch brings along for one kind of GPU to torch's own builds.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from phipipe.settings import installer_environment
from phipipe.toolchains.environments import LOCKS, names
from phipipe.toolchains.uv_settings import EXCLUDED, from_pip

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
HARDWARE = re.compile(r"^(nvidia-|cuda-|triton|pytorch-triton)")


def compile(name: str, output: Path) -> str:
    """The lock of extra ``name`` as it would be now; versions in ``output``, if it exists, are kept
    where they fit."""
    import uv

    extras = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    command = [
        uv.find_uv_bin(),
        "pip",
        "compile",
        "-",
        "--universal",
        "--python-version",
        "3.11",
        "--quiet",
    ]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    environment = installer_environment() | from_pip(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "lock.txt"
        if output.is_file():
            draft.write_bytes(output.read_bytes())
        excludes = Path(folder) / "excludes.txt"
        excludes.write_text("\n".join(EXCLUDED) + "\n", "utf-8")
        command += ["--output-file", str(draft), "--excludes", str(excludes)]
        subprocess.run(
            command,
            input="\n".join(extras[name]).encode(),
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        lines = draft.read_text("utf-8").splitlines()
    gpu = name.endswith("-cuda")  # there torch does not bring them along: nothing does
    kept = [
        re.sub(r"\+cpu\b.*", "", line)
        for line in lines
        if line and (gpu or not HARDWARE.match(line))
    ]
    whole = {
        line for line in kept if ";" not in line
    }  # a build for CPUs and the plain one are one line here
    kept = [
        line
        for line in dict.fromkeys(kept)
        if line.partition(" ;")[0] not in whole or line in whole
    ]
    return "\n".join(kept) + "\n"


def main() -> int:
    """Write the locks, or with ``--check`` say which differ from what their extras ask for (exit
    code 1)."""
    parser = argparse.ArgumentParser(description="Compile the toolchains' locks.")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("names", nargs="*", default=names())
    arguments = parser.parse_args()
    stale = []
    for name in arguments.names:
        output = LOCKS / f"{name}.txt"
        text = compile(name, output)
        if not output.is_file() or output.read_text("utf-8") != text:
            stale.append(name)
            if not arguments.check:
                output.write_text(text, "utf-8")
    print(f"{'stale' if arguments.check else 'written'}: {', '.join(stale) or 'none'}")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
