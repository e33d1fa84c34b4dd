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
from collections.abc import Iterable, Sequence
from pathlib import Path

import uv

from phipipe.settings import installer_environment
from phipipe.toolchains import uv_settings
from phipipe.toolchains.environments import LOCKS, names
from phipipe.toolchains.uv_settings import EXCLUDED

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
HARDWARE = re.compile(r"^(nvidia-|cuda-|triton|pytorch-triton)")


def compile(name: str, output: Path) -> str:
    """The lock of extra ``name`` as it would be now; versions in ``output``, if it exists, are kept
    where they fit."""
    extras = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "lock.txt"
        if output.is_file():
            draft.write_bytes(output.read_bytes())
        _resolve(extras[name], draft, Path(folder) / "excludes.txt")
        lines = draft.read_text("utf-8").splitlines()
    gpu = name.endswith("-cuda")  # there torch does not bring them along: nothing does
    return "\n".join(_portable(line for line in lines if gpu or not HARDWARE.match(line))) + "\n"


def _resolve(requirements: Sequence[str], draft: Path, excludes: Path) -> None:
    """Have uv write into ``draft`` the versions of all that ``requirements`` bring along."""
    excludes.write_text("\n".join(EXCLUDED) + "\n", "utf-8")
    command = [uv.find_uv_bin(), "pip", "compile", "-", "--quiet"]
    command += ["--universal", "--python-version", "3.11"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--output-file", str(draft), "--excludes", str(excludes)]
    subprocess.run(
        command,
        input="\n".join(requirements).encode(),
        check=True,
        env=installer_environment() | uv_settings.from_pip(os.environ),
        stdout=subprocess.DEVNULL,
    )


def _portable(lines: Iterable[str]) -> list[str]:
    """``lines`` with a package's build for CPUs and its plain one as one."""
    plain = [re.sub(r"\+cpu\b.*", "", line) for line in lines if line]
    whole = {line for line in plain if ";" not in line}
    return [
        line
        for line in dict.fromkeys(plain)
        if line.partition(" ;")[0] not in whole or line in whole
    ]


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
