"""A package behind the server, in a process of its own, and OpenAI's client that asks it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import psutil

from testing.shell import Shell

STORY = "Tell me a story."
TOKENS = 40


class Served:
    """A server in a process of its own."""

    def __init__(
        self, shell: Shell, package: Path, *words: str, before: Sequence[str] = ()
    ) -> None:
        command = [
            *before,
            sys.executable,
            "-m",
            "phipipe",
            "serve",
            str(package),
            "--port",
            "0",
            "--json",
        ]
        self.process = subprocess.Popen(
            [*command, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=shell._env,
            cwd=shell.folder,
            text=True,
            encoding="utf-8",
        )
        assert self.process.stdout is not None
        lines = []
        while not lines or not lines[-1].startswith("}"):
            lines.append(self.process.stdout.readline())
            assert lines[-1], self.process.communicate()[1]
        self.told = json.loads("".join(lines))
        self.client = openai.OpenAI(
            base_url=self.told["base_url"], api_key="none", max_retries=0, timeout=300
        )

    def chat(self, text: str = STORY, **more: Any) -> Any:
        given = {"model": self.told["model"], "max_tokens": TOKENS, **more}
        messages = given.pop("messages", [{"role": "user", "content": text}])
        return self.client.chat.completions.create(messages=messages, **given)

    def end(self, how: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(how)
        self.process.communicate(timeout=60)
        _, alive = psutil.wait_procs(children, 10)
        assert not alive
        return self.process.returncode
