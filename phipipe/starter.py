"""The recipe that ``phipipe init`` writes: small, commented, valid."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import ValidationError

from phipipe import device as targets
from phipipe.document import complaints, parse, resolve
from phipipe.errors import RecipeError
from phipipe.recipe import Recipe

SCHEMA = "recipe.schema.json"
TEMPLATE = """\
# yaml-language-server: $schema={schema}
# {name}: {precision} for {device}. Change a line, then look at what it does:
#   phipipe plan {file}
#   phipipe run {file}
# For completion in your editor: phipipe schema --write {schema_file}
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


def starter(
    name: str,
    device: str,
    precision: str,
    backend: str,
    source: str,
    *,
    file: str | None = None,
    schema: str = SCHEMA,
) -> str:
    """The text of a starter recipe, which loads.

    Args:
        name: the recipe's name; a slug.
        source: ``builtin:NAME``, a folder, or ``OWNER/REPO@COMMIT``.
        file: where the text will be written, for the commands in its header; ``NAME.yaml`` if not given.
        schema: where the JSON schema lies, seen from that file.

    Raises:
        RecipeError: a value is none that a recipe takes; names all such values.
        TargetError: there is no such device.
    """
    if not device.endswith((".yaml", ".yml")):
        targets.load(device)
    shown = " ".join((file or f"{name}.yaml").split())
    text = TEMPLATE.format(
        name=_scalar(name),
        device=_scalar(device),
        precision=_scalar(precision),
        backend=_scalar(backend),
        source=_source(source),
        file=f"'{shown}'" if " " in shown else shown,
        schema=schema,
        schema_file=(Path(shown).parent / schema).as_posix(),
    )
    try:
        Recipe.model_validate_json(json.dumps(parse(text, shown).data), strict=True)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, where))}: {message}" for where, message, _ in complaints(error, Recipe)]
        raise RecipeError("\n".join(found)) from None
    return text


def write(path: Path, *, device: str, precision: str, backend: str, source: str) -> None:
    """Write a starter recipe to ``path``; an existing file stays as it is.

    Raises:
        RecipeError: the file is there already, its folder is not, or a value is none that a recipe takes.
        TargetError: there is no such device.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower())[:80].strip("-._") or "recipe"
    shipped = path.parent / "../schemas" / SCHEMA  # the layout of phipipe's own repository, and of those like it
    schema = f"../schemas/{SCHEMA}" if shipped.is_file() else SCHEMA
    text = starter(name, device, precision, backend, source, file=path.as_posix(), schema=schema)
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise RecipeError(f"`{path}` is there already", hint="choose another name") from None
    except OSError as error:
        raise RecipeError(f"cannot write `{path}`: {error.strerror}") from None


def _source(text: str) -> str:
    if text.startswith("builtin:"):
        return f"{{builtin: {_scalar(text.removeprefix('builtin:'))}}}"
    if repo := re.fullmatch(r"([\w.-]+/[\w.-]+)@(\S+)", text):
        return f"{{repo: {_scalar(repo[1])}, revision: {_scalar(repo[2])}}}"
    return f"{{path: {_scalar(text)}}}"


def _scalar(text: str) -> str:
    """``text`` as YAML reads it back: plain where it can be, else in double quotes."""
    plain = re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*", text) and isinstance(resolve(text), str)
    return text if plain else json.dumps(text)
