"""Which build a starter recipe describes: a backend, a precision and options that fit the device,
and that the rules have nothing against where the model is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from phipipe import backends
from phipipe.errors import PhipipeError, TargetError
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning import preparation, starter_shipped
from phipipe.planning.plan import Plan
from phipipe.recipe.build import Build
from phipipe.recipe.device import Device, Unit
from phipipe.recipe.recipe import PRECISIONS
from phipipe.steps import Advice, Json


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A build that a recipe can describe.

    Attributes:
        keys: backend, precision, and what else the recipe says of them.
        accept: a comment for the difference of tokenizers that the recipe accepts; empty: none.
        recipe: the shipped recipe whose options these are; None: no other's.
        about: a comment for the recipe; empty where there is nothing to say.
    """

    keys: dict[str, Json]
    accept: str = ""
    recipe: str | None = None
    about: str = ""


def best(
    choices: Sequence[Choice], model: Checkpoint | None, build_of: Callable[[Choice], Build]
) -> Choice:
    """The first of ``choices`` that no rule of degeneration speaks against, if it is for the unit
    of the first that is possible; else that one.

    Args:
        choices: the usual one first.
        model: None where it is not known; then the usual one is taken.
        build_of: the build that a choice describes; raises PhipipeError where there is none.
    """
    if model is None:
        return choices[0]
    usual: tuple[Choice, Plan] | None = None
    refused: PhipipeError | None = None  # the first of them
    for choice in choices:
        try:
            plan = preparation.outlined(build_of(choice), model)
        except PhipipeError as error:
            refused = refused or error
            continue
        usual = usual or (choice, plan)
        if plan.api == usual[1].api and not _worse(plan):
            return _told(choice, choices[0], usual, refused)
    return _told(usual[0], choices[0], usual, refused) if usual else choices[0]


def suited(choice: Choice, model: Checkpoint | None) -> Choice:
    """``choice`` as the plan of ``model`` wants it: no more context than the model has, and a
    difference of tokenizers accepted where the backend's own cannot be brought to agree."""
    if model is None:
        return choice
    keys = dict(choice.keys)
    if "context" in keys:
        keys["context"] = min(keys["context"], model.context_length)
    return replace(choice, keys=keys, accept=_misread(model, keys["backend"]))


def _misread(model: Checkpoint, backend: str) -> str:
    """How ``backend`` reads some texts otherwise than the tokenizer of ``model``; nothing where it
    reads them alike."""
    face, form = backends.load(backend), model.normal_form
    if form and not face.normalizes:
        return (
            f"The tokenizer brings texts into the form {form} first, {backend} does not. "
            "Letters whose accents are characters of their own are read otherwise [M27]."
        )
    if model.cuts_digits and not face.cuts_digits:
        return (
            f"The tokenizer cuts digits off first, {backend} does not. "
            "Several spaces or line breaks before a number are read otherwise [M28]."
        )
    return ""


def _worse(plan: Plan) -> list[Advice]:
    """Warnings that the model will be much worse than its original."""
    return [advice for advice in plan.warnings if str(advice.rule).startswith("D")]


def _told(
    choice: Choice, first: Choice, usual: tuple[Choice, Plan], refused: PhipipeError | None
) -> Choice:
    """``choice`` with a comment that says where it comes from and why it is no other."""
    origin = f"Options of the shipped recipe {choice.recipe}." if choice.recipe else ""
    if choice is not usual[0]:
        advice = _worse(usual[1])[0]
        origin = f"Instead of {_words(usual[0].keys)}: {advice.message} [{advice.rule}]."
    elif choice is not first and refused is not None:
        why = "; ".join(one.message for one in refused.problems) or refused.message
        origin = f"Instead of {_words(first.keys)}: {why}."
    return replace(choice, about=origin)


def _words(keys: Mapping[str, Json]) -> str:
    given = dict(keys.get("quantize", {}))
    options = [f"{key} {value}" for key, value in given.items() if key != "map"]
    learned = ["learned weights"] if keys.get("weights") else []
    return ", ".join([f"{keys['precision']} with {keys['backend']}", *learned, *options])


def fitting(
    target: Device, precision: str | None, backend: str | None, model: Checkpoint | None
) -> list[Choice]:
    """Choices for ``target``, the usual one first: those of shipped recipes for ``model``, the
    device's own recipe, whatever else fits its first unit, then those of its other units.

    Raises:
        TargetError: the device cannot do it.
    """
    asked = [backend] if backend is not None else _preferred()
    known = starter_shipped.of_model(target, model) if model else []
    shipped = [Choice(keys=keys, recipe=name) for name, keys in known]
    own = starter_shipped.of_device(target)
    shipped += [Choice(keys=keys) for keys in own]
    short = [{"context": keys["context"]} for keys in own if "context" in keys]
    wanted = [precision] if precision else [*PRECISIONS]
    choices, before = list[Choice](), set[tuple[str, str]]()  # served by earlier units
    for unit in target.units:
        able = {name: backends.able(name, target, unit) for name in asked}
        plain = [
            Choice(keys={"backend": name, "precision": one, **more})
            for more in ({}, *short)  # a cache that grows to all of a model's may not fit
            for one in wanted
            for name in asked
            if one in able[name]
        ]
        for choice in (*shipped, *plain):
            if choice.keys["precision"] in wanted and _is_for(choice, unit, able):
                named = (choice.keys["backend"], choice.keys["precision"]) in before
                placed = replace(
                    choice, keys={**choice.keys, "unit": unit.api} if named else choice.keys
                )
                whole = [placed, *_apart(placed)]
                choices += [*whole, *(one for each in whole for one in _divided(each, model))]
        before |= {(name, one) for name, precisions in able.items() for one in precisions}
    if not choices:
        raise _nothing(target, precision, backend)
    return choices


def _is_for(choice: Choice, unit: Unit, able: Mapping[str, Sequence[str]]) -> bool:
    keys = choice.keys
    of_unit = keys.get("unit", unit.api) == unit.api
    return of_unit and keys["precision"] in able.get(keys["backend"], ())


def _apart(choice: Choice) -> Iterator[Choice]:
    """``choice`` with its sensitive layers wider, where its backend has options for that."""
    apart = backends.load(choice.keys["backend"]).apart
    if apart and choice.keys["precision"] == "int4":
        options = {**choice.keys.get("quantize", {}), **apart}
        options.pop("map", None)
        keys = {key: value for key, value in choice.keys.items() if key != "weights"}
        yield Choice(keys={**keys, "quantize": options})


def _divided(choice: Choice, model: Checkpoint | None) -> Iterator[Choice]:
    """``choice`` in the largest groups that divide the rows of ``model``, where 128 does not and
    it names none."""
    options = choice.keys.get("quantize", {})
    has = "group_size" in backends.load(choice.keys["backend"]).options.model_fields
    if model is None or not has or choice.keys["precision"] != "int4" or "group_size" in options:
        return
    if model.is_divided_by(128):
        return
    size = next((size for size in (64, 32) if model.is_divided_by(size)), None)
    if size is not None:
        yield replace(choice, keys={**choice.keys, "quantize": {**options, "group_size": size}})


def _preferred() -> list[str]:
    """Names of all backends; of several that fit, the first is taken."""
    return sorted(backends.names(), key=lambda name: (backends.load(name).rank, name))


def _nothing(target: Device, precision: str | None, backend: str | None) -> TargetError:
    who, what = f"`{backend}`" if backend else "no backend", precision or "anything"
    verb = "does not build" if backend else "builds"
    return TargetError(f"{who} {verb} {what} for {target.title}", hint=_what_works(target))


def _what_works(target: Device) -> str | None:
    every = {
        name: {p for unit in target.units for p in backends.able(name, target, unit)}
        for name in _preferred()
    }
    words = [
        f"{name}: {', '.join(sorted(able, key=PRECISIONS.index))}"
        for name, able in every.items()
        if able
    ]
    return f"what works: {'; '.join(words)}" if words else target.notes
