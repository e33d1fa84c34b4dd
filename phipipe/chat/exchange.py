"""A talk with a package as messages: runs inside the backend's toolchain, for ``conversation``.

Prompts come as JSON on stdin, one per line, and answers go as JSON to stdout, piece by piece.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from phipipe.chat import screen
from phipipe.chat.serve import explained, open_talk
from phipipe.chat.talk import Talk, refusing
from phipipe.errors import PhipipeError
from phipipe.processes import children, prohibitions
from phipipe.steps import Json


def serve(hold: Callable[[Mapping[str, Json]], None] | None = None) -> None:
    """In a process of its own: the conversation of ARGV[1]/request.json, or what ``hold`` does with
    that request.

    request  {"folder", "backend", "toolchain", "system", "tokens"}: see ``serve.open_talk``
    stdin    {"prompt"} or {"reset"}
    stdout   {"ready"}; for each prompt any number of {"text"} and {"note"}, then {"end"}: whether
             it was answered; or {"error"} (``errors.encoded``), after which nothing comes
    log.txt  what libraries and native code print
    """
    home = Path(sys.argv[1])
    screen.enclose(home / "log.txt")
    prohibitions.prohibit()
    children.end_with_parent()
    request = json.loads((home / "request.json").read_text("utf-8"))
    try:
        with refusing("the chat failed", f"phipipe verify {request['folder']}"):
            (hold or _converse)(request)
    except PhipipeError as error:
        tell(error=explained(error))
    except BrokenPipeError:  # nobody listens any more
        pass
    os._exit(0)  # runtimes have crashed when taken down: there is nothing left to do


def _converse(request: Mapping[str, Json]) -> None:
    folder, backend = Path(request["folder"]), request["backend"]
    talk = open_talk(folder, backend, request["tokens"], request["system"])
    talk.show, talk.say = _piece, _note
    tell(ready=True)
    for line in sys.stdin:
        _obey(talk, json.loads(line))


def _obey(talk: Talk, asked: Mapping[str, Json]) -> None:
    if "reset" in asked:
        talk.reset()
    else:
        tell(end=talk.answer(asked["prompt"]))


def _piece(text: str) -> None:
    tell(text=text)


def _note(line: str) -> None:
    """What there is to say of an answer, without its brackets and the command line's advice."""
    tell(note=line.strip("[]").partition(";")[0])


def tell(**message: Json) -> None:
    """A message to who started this process."""
    screen.show(f"{json.dumps(message)}\n")
