"""The command line, in this process and in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from testing import documents
from testing.places import QUICKSTART

Run = Callable[..., tuple[int, str, str]]


class Shell:
    """The command line as a user has it, over a cache and a package folder of this module's own."""

    def __init__(self, folder: Path, toolchains: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.before: Sequence[str] = ()  # what each command is begun with
        self._env = {
            **os.environ,
            "PHIPIPE_CACHE": str(self.cache),
            "PHIPIPE_TOOLCHAINS": str(toolchains),
        }

    def __call__(
        self,
        *words: str | Path,
        expect: int = 0,
        env: Mapping[str, str] | None = None,
        timeout: float = 580,
    ) -> Any:
        command = [*self.before, sys.executable, "-m", "phipipe", *map(str, words)]
        environment = {**self._env, **(env or {})}
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=environment,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == expect, (
            f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        if "--json" in words:
            documents.fits(words, done.stdout)
        return done

    def run(
        self, *words: str | Path, recipe: Path = QUICKSTART, expect: int = 0
    ) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = json.loads(
            self("run", recipe, "--json", *words, expect=expect).stdout
        )
        return answer
