"""What a shell can offer after TAB: names that exist here. Fast and silent: no network, no message,
and whatever goes wrong means that nothing is offered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin

import click

from phipipe.visible import one_line

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem[str]] | list[str]"]
Offers = Iterable[str | tuple[str, str]]  # words, some with what they mean
HELP = 80  # characters
WORD = re.compile(r"[\w.,:@=+/{}-]+")  # what no shell takes apart


def offering(find: Callable[[click.Context, str], Offers]) -> Complete:
    """What completes a value by the words that ``find`` knows, given what is typed so far."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        try:
            words = list(find(context, incomplete))
        except Exception:  # noqa: BLE001 (somebody is typing: no place for a message)
            return []
        found = [(one, "") if isinstance(one, str) else one for one in words]
        return [
            CompletionItem(word, help=one_line(meaning)[:HELP])
            for word, meaning in found
            if word.startswith(incomplete) and WORD.fullmatch(word)
        ]

    return complete


def _devices(context: click.Context, incomplete: str) -> Offers:
    from phipipe.recipe import device

    return device.names()


def _backends(context: click.Context, incomplete: str) -> Offers:
    from phipipe import backends

    return backends.names()


def _apps(context: click.Context, incomplete: str) -> Offers:
    from phipipe.package import layouts

    return layouts.names()


def _toolchains(context: click.Context, incomplete: str) -> Offers:
    from phipipe.toolchains import environments

    return environments.names()


def _variants(context: click.Context, incomplete: str) -> Offers:
    """The variants of the recipes that are typed already."""
    from phipipe.backends import OptionsOf
    from phipipe.recipe import loading

    for path in _recipes(context):
        builds, _ = loading.gather(path, options=OptionsOf())
        for build in builds:
            yield build.name.removeprefix(f"{build.recipe.name}-")


def _recipes(context: click.Context) -> Iterator[Path]:
    """Recipes among the words so far; behind an option without its value they are unsorted."""
    named = context.params.get("recipe"), *(context.params.get("recipes") or ()), *context.args
    yield from (path for path in map(Path, filter(None, named)) if path.is_file())


def _runs(context: click.Context, incomplete: str) -> Offers:
    from phipipe.cli.workplace import settings_of_user
    from phipipe.execution import past_runs

    return ["latest", *past_runs.ids(settings_of_user().cache)]


def _steps(context: click.Context, incomplete: str) -> Offers:
    """The steps of the run that is typed already."""
    from phipipe.cli.workplace import settings_of_user
    from phipipe.execution import past_runs

    run = past_runs.find(settings_of_user().cache, str(context.params["run_id"]))
    names = (str(event["step"]).rpartition(": ")[2] for event in run.events if "step" in event)
    return sorted(set(names))


def _explained(context: click.Context, incomplete: str) -> Offers:
    from phipipe.cli import explain

    return [(one.id, one.what) for one in explain.explanations().values()]


def _schemas(context: click.Context, incomplete: str) -> Offers:
    from phipipe.cli import schemas

    return [schemas.RECIPE, *schemas.DOCUMENTS]


def _shipped(context: click.Context, incomplete: str) -> Offers:
    from phipipe.recipe import shipped

    return shipped.names()


def _topics(context: click.Context, incomplete: str) -> Offers:
    from phipipe.cli import docs

    return docs.topics()


def _zones(context: click.Context, incomplete: str) -> Offers:
    from zoneinfo import available_timezones

    return sorted(available_timezones())


def _sets(context: click.Context, incomplete: str) -> Offers:
    """``KEY=`` for every key of a recipe; behind it, the values of a key that has a few."""
    from phipipe.recipe.recipe import Recipe

    fields = dict(_fields(Recipe, ""))
    key, equals, _ = incomplete.partition("=")
    if not equals:
        return [(f"{name}=", field.description or "") for name, field in fields.items()]
    names = {"device": _devices, "backend": _backends}
    if key in names:
        values = [str(value) for value in names[key](context, incomplete)]
    else:
        values = _choices(fields[key].annotation)
    return [f"{key}={value}" for value in values]


def _fields(model: type[BaseModel], before: str) -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of everything that ``--set`` can name."""
    for own, field in model.model_fields.items():
        name = field.alias or own
        kinds = (field.annotation, *get_args(field.annotation))
        inner = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
        if inner is None:
            yield f"{before}{name}", field
        else:
            yield from _fields(inner, f"{before}{name}.")


def _choices(annotation: object) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for inner in get_args(annotation) for choice in _choices(inner)]


devices = offering(_devices)
backends = offering(_backends)
apps = offering(_apps)
toolchains = offering(_toolchains)
variants = offering(_variants)
runs = offering(_runs)
steps = offering(_steps)
explained = offering(_explained)
schemas = offering(_schemas)
shipped = offering(_shipped)
sets = offering(_sets)
topics = offering(_topics)
zones = offering(_zones)
