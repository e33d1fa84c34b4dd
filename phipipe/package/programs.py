"""Programs on the card that run the package with its runtime alone: on a computer, and in an app on
a phone. A backend has them as templates, beside its face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from phipipe import backends
from phipipe.package.description import Description
from phipipe.package.markdown import Safe, block
from phipipe.steps import Json
from phipipe.vision import kinds

if TYPE_CHECKING:
    from jinja2 import Environment

PROGRAM_CHARACTERS = 8000  # programs are our own: none is cut
SNIPPET_TOKENS = 512
PICTURE_TOKENS = 8192  # of a prompt with up to three pictures and its answer
APPS = (
    ("app.kt.j2", "kotlin", "an Android app"),
    ("app.swift.j2", "swift", "an iPhone or Mac app"),
)


def alone(package: Description, environment: Environment) -> Safe | None:
    """A program in Python; backends without one have none."""
    return _program(package, environment, "run.py.j2", "python")


def in_apps(package: Description, environment: Environment) -> list[tuple[str, Safe]]:
    """Kinds of apps, and what such an app calls."""
    found = ((where, _program(package, environment, name, kind)) for name, kind, where in APPS)
    return [(where, program) for where, program in found if program is not None]


def _program(
    package: Description, environment: Environment, name: str, language: str
) -> Safe | None:
    from jinja2 import TemplateNotFound

    try:
        template = environment.get_template(f"{package.backend}/{name}")
    except TemplateNotFound:
        return None
    program = template.render(_view(package))
    return block(program, language, limit=PROGRAM_CHARACTERS) if program.strip() else None


def _view(package: Description) -> Mapping[str, Json]:
    context = package.source.context_length
    return {
        "versions": {n: v for step in package.steps.values() for n, v in step.tools.items()},
        "chat": bool(package.chat_template),
        "max_length": min(SNIPPET_TOKENS, context),
        "api": package.api,
        "sees": package.fidelity.vision is not None,
        "square": package.source.architecture in backends.load(package.backend).square,
        "after_mark": kinds.after_mark(package.source.architecture)
        .encode("unicode_escape")
        .decode(),
        "picture_length": min(PICTURE_TOKENS, context),
        "options": package.recipe.quantize,
        "quantized": package.precision in ("int4", "int8"),
    }
