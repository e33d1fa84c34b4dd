"""The conversation of ``phipipe chat PACKAGE``: runs inside the backend's toolchain, on the user's
terminal.

On a terminal it is interactive; with other input every line is a prompt of one conversation.
Answers go to stdout, everything else to stderr. Ctrl-C stops the answer, a second one ends the
chat; Ctrl-D or ``/quit`` end it, ``/reset`` forgets what was said.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from phipipe import backends
from phipipe.chat import screen
from phipipe.chat.lines import converse
from phipipe.chat.talk import INTERRUPTED, OK, Talk, refusing
from phipipe.errors import PhipipeError, RecipeError, encoded
from phipipe.package.manifest import read_manifest
from phipipe.package.manifest_schema import Manifest
from phipipe.processes import children, interrupts, prohibitions
from phipipe.steps import Json
from phipipe.visible import visible

MAX_TOLD = 600  # characters of a library's own words


def main(folder: Path, backend: str, prompt: str | None, limit: int, system: str | None) -> int:
    """Chat with the package in ``folder``; answer ``prompt`` only, if there is one.

    Args:
        folder: the package.
        backend: whose toolchain this runs in.
        prompt: the only prompt; None for a conversation.
        limit: tokens of an answer, at most.
        system: a system message.

    Returns:
        The exit code.

    Raises:
        PhipipeError: it cannot be opened, or cannot answer.
    """
    if prompt is not None and not prompt.strip():
        raise RecipeError(
            "the prompt is empty", hint="phipipe chat PACKAGE --prompt 'Tell me a story.'"
        )
    try:
        talk = open_talk(folder, backend, limit, system)
        try:
            if prompt is not None:
                return talk.once(prompt)
            return converse(talk, sys.stdin or io.StringIO())
        finally:
            talk.runtime.close()
    except KeyboardInterrupt:
        return INTERRUPTED


def open_talk(folder: Path, backend: str, limit: int, system: str | None) -> Talk:
    """A conversation with the package in ``folder``, of which nothing was said yet; the parameters
    are those of ``main``."""
    manifest = read_manifest(folder)
    face = backends.load(backend)
    with refusing("the package cannot be opened", f"phipipe verify {folder}", face.toolchain):
        tokenizer = face.tokenizer(folder)  # before the weights: it is the first to be refused
        runtime = face.open(folder)
    return Talk(
        runtime=runtime,
        tokenizer=tokenizer,
        context=context_of(manifest),
        limit=limit,
        system=system if manifest.chat_template else None,
        template=manifest.chat_template is not None,
    )


def context_of(manifest: Manifest) -> int:
    """Tokens of a prompt with its answer: what the model was trained for, or the less that the
    artifact's cache was built with."""
    built = [step.params.get("context_length") for step in manifest.steps.values()]
    fixed = [length for length in built if isinstance(length, int) and length > 0]
    return min([manifest.source.context_length, *fixed])


def serve() -> None:
    """In a process of its own: the conversation of ARGV[1]/request.json; ARGV[1]/response.json says
    how it ended.

    request   {"folder", "backend", "toolchain", "prompt", "system", "tokens"}: see ``main``
    response  {"code"} or {"error"} (``errors.encoded``); without one, the process died
    log.txt   what libraries and native code print: nothing of theirs reaches the terminal
    """
    home = Path(sys.argv[1])
    screen.enclose(home / "log.txt")
    sys.addaudithook(prohibitions.refuse)
    sys.meta_path.insert(0, prohibitions.NoTorchLoad())
    children.end_with_parent()
    request = json.loads((home / "request.json").read_text("utf-8"))
    aside = home / "response.tmp"
    aside.write_text(json.dumps(_outcome(request)), "utf-8")
    aside.replace(home / "response.json")
    os._exit(0)  # runtimes have crashed when taken down: there is nothing left to do


def _outcome(request: Mapping[str, Json]) -> dict[str, Json]:
    """How the conversation ended."""
    prompt, system = _clean(request["prompt"]), _clean(request["system"])
    folder, hint = Path(request["folder"]), f"phipipe verify {request['folder']}"
    try:
        interrupts.take()  # not before: in the middle of Python's own start they end in a traceback
        with refusing("the chat failed", hint, request["toolchain"]):
            code = main(folder, request["backend"], prompt, request["tokens"], system)
            return {"code": code}
    except PhipipeError as error:
        return {"error": explained(error)}
    except BrokenPipeError:  # the reader of our output went away (| head)
        return {"code": OK}
    except KeyboardInterrupt:
        return {"code": INTERRUPTED}


def explained(error: PhipipeError) -> dict[str, Json]:
    """``error`` for our parent: a library's own words in it are visible, and not many."""
    message = " ".join(visible(error.message).split())
    if len(message) > MAX_TOLD:
        message = f"{message[:MAX_TOLD]} …"
    words = {"message": message, "hint": visible(error.hint) if error.hint else None}
    return encoded(error) | words


def _clean(text: str | None) -> str | None:
    """``text`` from a command line that may not have been UTF-8."""
    return (
        None if text is None else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    )
