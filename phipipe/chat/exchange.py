"""A talk with a package as messages: runs inside the backend's toolchain, for ``conversation``.

Prompts come as JSON on stdin, one per line, and answers go as JSON to stdout, piece by piece.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from phipipe.chat import screen
from phipipe.chat.serve import explained, open_talk
from phipipe.chat.talk import Talk, refusing
from phipipe.errors import PhipipeError
from phipipe.processes import children, prohibitions
from phipipe.steps import Json


def serve() -> None:
    """In a process of its own: the conversation of ARGV[1]/request.json.

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
            _converse(request)
    except PhipipeError as error:
        _say(error=explained(error))
    except BrokenPipeError:  # nobody listens any more
        pass
    os._exit(0)  # runtimes have crashed when taken down: there is nothing left to do


def _converse(request: Mapping[str, Json]) -> None:
    folder, backend = Path(request["folder"]), request["backend"]
    talk = open_talk(folder, backend, request["tokens"], request["system"])
    talk.show, talk.say = _piece, _note
    _say(ready=True)
    for line in sys.stdin:
        _obey(talk, json.loads(line))


def _obey(talk: Talk, asked: Mapping[str, Json]) -> None:
    if "reset" in asked:
        talk.reset()
    else:
        _say(end=talk.answer(asked["prompt"]))


def _piece(text: str) -> None:
    _say(text=text)


def _note(line: str) -> None:
    """What there is to say of an answer, without its brackets and the command line's advice."""
    _say(note=line.strip("[]").partition(";")[0])


def _say(**message: Json) -> None:
    screen.show(f"{json.dumps(message)}\n")
