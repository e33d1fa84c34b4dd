"""The page of the Python API, from the signatures and docstrings of what ``phipipe`` gives."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence

import phipipe
from phipipe.cli import explain
from phipipe.errors import PhipipeError
from phipipe.maintain.markdown import page, prose, section, sentence, table

ALIASES = (
    "In signatures, `UserPath` is text or a `Path`. `Names` is one name or several. `Sets` is a "
    "mapping of keys to values, or `KEY=VALUE` as the option `--set` takes it. `OnProgress` is a "
    "function of an `Event`, `OnText` a function of a text."
)
HEADS = ("Arguments", "Args", "Raises", "Returns", "Yields", "Attributes", "Units")


def python() -> str:
    """Every public name."""
    names = [name for name in phipipe.__all__ if not name.startswith("_")]
    objects = {name: getattr(phipipe, name) for name in names}
    return page(
        "Python",
        "`import phipipe` is light: what is heavy is imported when it is used. The API prints "
        "nothing. It raises `phipipe.errors.PhipipeError` or one of its kinds; each has an "
        "[exit code](exit-codes.md) and a hint.",
        ALIASES,
        *(_object(name, value) for name, value in objects.items() if not _fails(value)),
        section("Errors", _errors([value for value in objects.values() if _fails(value)])),
    )


def _fails(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, PhipipeError)


def _errors(kinds: Sequence[type[PhipipeError]]) -> str:
    """Kinds of failures, explained by their exit codes."""
    known = explain.explanations()
    rows = [
        [
            f"`{kind.__name__}`",
            f"[{kind.exit_code}](exit-codes.md#exit-code-{kind.exit_code})",
            sentence(known[str(kind.exit_code)].what),
        ]
        for kind in kinds
    ]
    return table(["error", "exit code", "meaning"], rows)


def _object(name: str, value: object) -> str:
    if inspect.isclass(value):
        members = [_member(name, label, inner) for label, inner in _public(value)]
        return section(name, _head(name, value), _doc(value), *members)
    if callable(value):
        return section(name, _head(name, value), _doc(value))
    return section(name, f"`{type(value).__name__}`")


def _public(owner: type) -> Iterator[tuple[str, object]]:
    kinds = [kind for kind in reversed(owner.__mro__) if kind.__module__.startswith("phipipe.")]
    for label, value in {k: v for kind in kinds for k, v in vars(kind).items()}.items():
        inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        is_shown = isinstance(inner, property) or inspect.isfunction(inner)
        if is_shown and not label.startswith("_") and inner.__doc__:
            yield label, inner


def _member(owner: str, label: str, value: object) -> str:
    if isinstance(value, property):
        kind = inspect.signature(value.fget).return_annotation if value.fget else ""
        return section(f"{owner}.{label}", f"`{_plain(kind)}`", _doc(value), level=3)
    return section(f"{owner}.{label}", _head(f"{owner}.{label}", value), _doc(value), level=3)


def _head(name: str, value: object) -> str:
    assert callable(value)
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    return f"```python\n{name}{_plain(signature)}\n```"


def _plain(annotation: object) -> str:
    text = (
        annotation
        if isinstance(annotation, str)
        else getattr(annotation, "__name__", str(annotation))
    )
    text = re.sub(r"\(self, |\(cls, ", "(", text).replace("(self)", "()").replace("(cls)", "()")
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # of annotations, not of defaults


def _doc(value: object) -> str:
    """A docstring; its sections become lists."""
    text = inspect.getdoc(value) or ""
    parts = re.split(rf"^({'|'.join(HEADS)}):\n", text, flags=re.M)
    whole = [prose(parts[0])]
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        whole.append(f"**{head}**")
        rows = re.findall(r"^ {1,4}(\S.*?)(?=^ {1,4}\S|\Z)", body, re.M | re.S)
        whole.append("\n".join(f"- {_row(row)}" for row in rows))
    return "\n\n".join(part for part in whole if part)


def _row(row: str) -> str:
    name, colon, rest = row.partition(":")
    return f"`{name.strip('`')}`: {prose(rest)}" if colon and " " not in name else prose(row)
