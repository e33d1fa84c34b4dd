"""The text of a starter recipe."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path

from phipipe.planning.starter_choice import Choice
from phipipe.planning.starter_source import Source
from phipipe.recipe.scalars import is_text
from phipipe.steps import Json

SCHEMA = "recipe.schema.json"
WIDTH = 100
_OLD_FLAGS = ("y", "n", "yes", "no", "on", "off")  # what older readers of YAML take for a flag
TEMPLATE = """\
# yaml-language-server: $schema={schema}
# {name}: {precision} for {title}. Change a line, then look at what it does:
#   phipipe plan {file}
#   phipipe run {file}
# For completion in your editor: phipipe schema --write {schema_file}
name: {name}
source: {source}
device: {device}   # phipipe devices
backend: {backend}   # phipipe backends
precision: {precision}   # int4, int8, fp16, fp32
{options}evaluate:
  {text}
  # tokens: 4096             # without it, of models above 10⁹ parameters as many as needed, no more
  gates:                     # nothing is packaged outside of these limits
    kld_mean: {{max: 0.1}}
    top1: {{min: 0.8}}
"""


def compose(
    path: Path,
    head: Mapping[str, str],
    choice: Choice,
    source: Source,
    exam: Mapping[str, Json],
) -> str:
    """The recipe that is written to ``path``: ``head`` has name, device and title, ``exam`` is the
    evaluation text, ``choice`` has the rest."""
    chosen = choice.keys
    # The layout of phipipe's own repository, and of those like it.
    shipped = path.parent / "../schemas" / SCHEMA
    schema = f"../schemas/{SCHEMA}" if shipped.is_file() else SCHEMA
    kept = [key for key in ("unit", "context", "weights", "quantize") if key in chosen]
    lines = [*_comment(choice.about), *(f"{key}: {flow(chosen[key])}" for key in kept)]
    if "quantize" not in chosen:
        lines.append(
            f"# quantize: {{}}             # phipipe backends {chosen['backend']} lists the options"
        )
    calibrate = dict(chosen.get("calibrate", {}))
    if "path" in source.model:
        calibrate["text"] = {"builtin": "stories"}  # what a folder's model learns from must be said
    if calibrate:
        lines.append(f"calibrate: {flow(calibrate)}   # what options that look at data learn from")
    mark = "" if source.pinned else f"   # not pinned yet: phipipe pin {word(path)}"
    return TEMPLATE.format(
        schema=schema,
        schema_file=word(path.parent / schema),
        file=word(path),
        title=head["title"],
        name=_scalar(head["name"]),
        device=_scalar(head["device"]),
        backend=chosen["backend"],
        precision=chosen["precision"],
        source=flow(source.keys) + mark,
        options="".join(f"{line}\n" for line in lines),
        text=f"{_about(exam)}text: {flow(exam)}{_accept(choice.accept)}",
    )


def _comment(text: str, indent: str = "") -> list[str]:
    mark = f"{indent}# "
    return textwrap.wrap(text, WIDTH, initial_indent=mark, subsequent_indent=mark)


def _accept(why: str) -> str:
    """Lines of ``evaluate`` that accept a difference of tokenizers; ``why`` is their comment."""
    lines = [*_comment(why, "  "), "  accept: [tokenizer]"] if why else []
    return "".join(f"\n{line}" for line in lines)


def _about(exam: Mapping[str, Json]) -> str:
    """What an evaluation text is, and what would be better."""
    if "file" in exam:
        return ""
    what = "WikiText-2, test split" if "dataset" in exam else "stories that phipipe carries"
    return f"# {what}; text like that of your task is better: {{file: my-text.txt}}\n  "


def word(path: Path) -> str:
    """``path`` as a word of a command line that can be copied."""
    text = f"./{path}" if str(path).startswith("-") else str(path)
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


def flow(value: Json) -> str:
    """``value`` as YAML on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {flow(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    return _scalar(value) if isinstance(value, str) else json.dumps(value)


def _scalar(text: str) -> str:
    """``text`` as YAML reads it back: plain where it can be, else in double quotes."""
    plain = re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*", text)
    if plain and is_text(text) and text.lower() not in _OLD_FLAGS:
        return text
    return json.dumps(text, ensure_ascii=False)
