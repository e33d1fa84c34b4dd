"""A talk with a package from Python: prompts and answers as values, the model in a process of its
own."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from phipipe.chat import process
from phipipe.errors import PhipipeError, RecipeError, decoded
from phipipe.processes.children import own_group, python_command, read_lines, reap
from phipipe.settings import Settings
from phipipe.steps import Json

SERVE = "from phipipe.chat.exchange import serve; serve()"
STOP_S = 5.0  # how long a process may take to end after it was killed

OnText = Callable[[str], object]
"""A function that gets an answer piece by piece."""


class Conversation:
    """A conversation with a package, which remembers what was said.

    ``Package.conversation`` begins one; use it in a ``with`` block. Ctrl-C and an error of the
    runtime end it.

    Attributes:
        messages: what was said, each with ``role`` and ``content``.
        notes: what there is to say of the last answer, such as that it was cut.
    """

    def __init__(
        self, python: Path, request: Mapping[str, Json], settings: Settings, call: str = SERVE
    ) -> None:
        """Start the process that holds the conversation of ``request`` (``chat.exchange``).

        ``call`` is what the process does.
        """
        self.messages: list[dict[str, str]] = []
        self.notes: list[str] = []
        self._request, self._limit = request, process.memory_limit(settings)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._folder = tempfile.TemporaryDirectory(
            prefix="phipipe-chat-", ignore_cleanup_errors=True
        )
        self._home = Path(self._folder.name)
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = self._started(python, settings, call)
            self._until("ready")
        except BaseException:
            self.close()
            raise

    def _started(self, python: Path, settings: Settings, call: str) -> subprocess.Popen[str]:
        home = self._home
        (home / process.REQUEST).write_text(json.dumps(dict(self._request)), "utf-8")
        try:
            started = subprocess.Popen(
                python_command(python, call, str(home)),
                cwd=home,
                env=process.environment_in(home, settings),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what is said before ``log.txt`` is there
                encoding="utf-8",
                **own_group(),
            )
        except OSError as error:
            raise process.unstartable(error, self._request) from None
        reading = (started.stdout, self._lines)
        threading.Thread(target=read_lines, args=reading, daemon=True).start()
        return started

    def ask(self, prompt: str, on_text: OnText | None = None) -> str:
        """Ask, and return the whole answer. Control characters in it are escaped.

        Args:
            prompt: what you say.
            on_text: a function that gets the answer piece by piece.

        Raises:
            RecipeError: the prompt is empty, or the model's context has no room for it.
            StepFailed, StepKilled: the runtime refuses it, or was ended.
        """
        check_prompt(prompt)
        self.notes.clear()
        pieces: list[str] = []

        def heard(piece: str) -> None:
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)

        answered = self._exchange({"prompt": clean(prompt)}, heard)
        if not answered:
            raise RecipeError(
                self.notes[-1] if self.notes else "the prompt is too long",
                hint="a shorter prompt, or reset() to forget what was said",
            )
        answer = "".join(pieces).removesuffix("\n")
        self.messages += [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        return answer

    def reset(self) -> None:
        """Forget what was said."""
        self._send({"reset": True})
        self.messages.clear()

    def close(self) -> None:
        """End the conversation. Twice is fine."""
        if self._process is not None:
            reap(self._process, (), STOP_S)
            self._process = None
        self._folder.cleanup()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _exchange(self, message: Mapping[str, Json], heard: OnText) -> bool:
        """Send ``message``, and hear the answer; whether there was one."""
        try:
            self._send(message)
            return bool(self._until("end", heard))
        except BaseException:
            self.close()
            raise

    def _send(self, message: Mapping[str, Json]) -> None:
        running = self._running()
        assert running.stdin is not None  # a pipe
        try:
            running.stdin.write(f"{json.dumps(message)}\n")
            running.stdin.flush()
        except OSError:
            raise self._died("") from None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RecipeError("the conversation has ended", hint="begin another")
        return self._process

    def _until(self, last: str, heard: OnText | None = None) -> Json:
        """What the message ``last`` says, after those that come before it."""
        while True:
            message = self._next()
            if last in message:
                return message[last]
            if "error" in message:
                raise decoded(message["error"])
            if "note" in message:
                self.notes.append(message["note"])
            elif heard is not None:
                heard(message["text"])

    def _next(self) -> dict[str, Json]:
        """The next message; the process is watched while it is waited for."""
        while True:
            try:
                line = self._lines.get(timeout=process.SAMPLE_S)
            except queue.Empty:
                if verdict := self._limit.verdict(self._running().pid):
                    raise self._died(verdict) from None
                continue
            if not line:
                raise self._died("")
            message: dict[str, Json] = json.loads(line)
            return message

    def _died(self, verdict: str) -> PhipipeError:
        """Why there will be no more messages."""
        running = self._running()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(0 if verdict else STOP_S)
        reap(running, (), STOP_S)
        return process.died(self._home, running.returncode or 0, verdict, self._request)


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that says nothing.

    Raises:
        RecipeError: it is empty.
        TypeError: it is no text.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"the prompt is {type(prompt).__name__}: give a text")
    if not prompt.strip():
        raise RecipeError("the prompt is empty", hint="package.chat('Tell me a story.')")


def clean(text: str) -> str:
    """``text`` without halves of surrogate pairs, which no tokenizer takes."""
    lone = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", text)  # stand for no byte
    return lone.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
