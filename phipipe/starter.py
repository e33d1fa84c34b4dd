"""The recipe that ``phipipe init`` writes: small, commented, valid."""

from __future__ import annotations

import re
from pathlib import Path

from phipipe.errors import RecipeError

TEMPLATE = """\
# {name}: {precision} for {device}. Change a line, then look at what it does:
#   phipipe plan {file}
#   phipipe run {file}
name: {name}
source: {source}
device: {device}          # phipipe devices
backend: {backend}        # phipipe backends
precision: {precision}            # int4, int8, fp16, fp32
# quantize: {{}}             # phipipe backends {backend} lists the options and their defaults
evaluate:
  text: {{builtin: stories}}   # or {{file: my-text.txt}}: use text like that of your task
  tokens: 4096
  gates:                     # nothing is packaged outside of these limits
    kld_mean: {{max: 0.1}}
    top1: {{min: 0.8}}
"""


def write(path: Path, *, device: str, precision: str, backend: str, source: str) -> None:
    """Write a starter recipe to ``path``; an existing file stays as it is.

    ``source`` is ``builtin:NAME``, a folder, or ``OWNER/REPO@COMMIT``.

    Raises:
        RecipeError: the file is there already, its folder is not, or the source makes no sense.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "recipe"
    text = TEMPLATE.format(
        name=name, file=path.as_posix(), device=device, precision=precision, backend=backend, source=_source(source)
    )
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise RecipeError(f"`{path}` is there already", hint="choose another name") from None
    except OSError as error:
        raise RecipeError(f"cannot write `{path}`: {error.strerror}") from None


def _source(text: str) -> str:
    if text.startswith("builtin:"):
        return f"{{builtin: {text.removeprefix('builtin:')}}}"
    repo, at, commit = text.partition("@")
    if at:
        return f"{{repo: '{repo}', revision: '{commit}'}}"  # a commit of digits alone is still text
    return "{path: '" + text.replace("'", "''") + "'}"
