"""The prompts of a conversation, line by line: typed on a terminal, or read from other input."""

from __future__ import annotations

import contextlib
import functools
import re
from typing import TextIO

from phipipe.chat import screen
from phipipe.chat.screen import say, show
from phipipe.chat.talk import INTERRUPTED, OK, TOO_LONG, Talk
from phipipe.errors import RecipeError

MAX_LINE = 2**20  # characters of a prompt
COMMAND = re.compile(r"/[a-z]+", re.IGNORECASE)
COMMANDS = "/reset forgets the conversation, /quit or Ctrl-D ends it, /help says this"


def converse(talk: Talk, stream: TextIO) -> int:
    """Answer the lines of ``stream`` until it ends; the exit code."""
    interactive = stream.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # line editing and history, where Python has it
            import readline  # noqa: F401
        say(f"{COMMANDS}, Ctrl-C stops an answer")
    lines = _typed if interactive else functools.partial(_line, stream)
    interrupted = False
    while True:
        try:
            line = lines()
            if not line or line.strip() == "/quit":
                return OK
            if COMMAND.fullmatch(line.strip()):
                _obey(talk, line.strip())
            elif line.strip() and not talk.answer(line.rstrip("\r\n")) and not interactive:
                return TOO_LONG
            interrupted = False
        except KeyboardInterrupt:
            show("\n")
            if interrupted or not interactive:
                return INTERRUPTED
            interrupted = True
            say("[stopped; Ctrl-C again ends the chat]")


def _obey(talk: Talk, command: str) -> None:
    if command == "/reset":
        talk.reset()
        say("[forgotten]")
    elif command == "/help":
        say(COMMANDS)
    else:
        say(f"[there is no `{command}`: {COMMANDS}]")


def _line(stream: TextIO) -> str:
    """The next prompt; empty only at the end."""
    try:
        line = stream.readline(MAX_LINE)
    except OSError as error:
        raise RecipeError(f"the prompts cannot be read: {error.strerror}") from None
    if len(line) == MAX_LINE:
        raise RecipeError(f"a prompt has more than {MAX_LINE} characters")
    return line


def _typed() -> str:
    """A line as ``readline`` returns it: empty only at the end."""
    try:
        with screen.line_editing():
            return input("> ") + "\n"
    except EOFError:
        show("\n")
        return ""
