"""Recipe × device × backend: whether the device can run it at all. Everything that needs no model
to be known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from phipipe import backends, failures
from phipipe.backends import model_rules, rules
from phipipe.backends.base import Job
from phipipe.errors import PhipipeError, SourceError
from phipipe.planning import apps, learnable
from phipipe.recipe import device
from phipipe.recipe.build import Build, paths_of, problem_at
from phipipe.recipe.device import Device, Unit
from phipipe.recipe.loading import gather
from phipipe.recipe.places import Where
from phipipe.steps import Advice
from phipipe.suggestions import near

BACKEND: Where = ("backend",)
DEVICE: Where = ("device",)
UNIT: Where = ("unit",)
PRECISION: Where = ("precision",)
QUANTIZE: Where = ("quantize",)


class Target(NamedTuple):
    """What a build is for. ``options`` are the recipe's, with the device's own values where they
    leave a choice."""

    device: Device
    unit: Unit
    options: BaseModel


def of(build: Build) -> Target:
    """The device, the unit and the options of ``build``.

    Raises:
        TargetError: no such device or unit, or none that the backend serves at this precision with
            these options, or for weights that are learned, or an app of `package.for` cannot open
            it; says what would work. Several things that are wrong are one error.
        RecipeError: a device file of the user's is missing or malformed.
    """
    target = _device(build)
    unit = _unit(build, target)
    options = _options(build, target, unit)
    learnable.check(build, target, unit)
    apps.check(build, unit, options)
    return Target(target, unit, options)


def check(build: Build) -> None:
    """Refuse what is impossible whatever the model.

    Raises:
        TargetError, RecipeError: see ``of``; or a rule forbids it for every model.
    """
    _, _, options = of(build)
    refuse(build, _rules(build, options))


def problems(builds: Iterable[Build]) -> list[PhipipeError]:
    """Why each of ``builds`` that is impossible is so."""
    errors = []
    for build in builds:
        try:
            check(build)
        except PhipipeError as error:
            errors.append(error)
    return errors


def checked(path: Path, sets: Sequence[str] = (), only: Sequence[str] = ()) -> list[Build]:
    """The builds that the file ``path`` describes, after everything that can be known without a
    model.

    Raises:
        PhipipeError: all that is wrong, as one error (``several.as_one``): RecipeError,
            TargetError.
    """
    builds, error = gather(path, sets=sets, only=only, options=backends.OptionsOf())
    if errors := [*([error] if error else []), *problems(builds)]:
        raise failures.as_one(errors)
    return builds


def refuse(build: Build, advice: Iterable[Advice]) -> None:
    """Raise if ``advice`` has an error."""
    errors = [a for a in advice if a.level == "error"]
    if errors:
        message = "; ".join(f"{a.message} [{a.rule}]" for a in errors)
        hints = dict.fromkeys(a.hint for a in errors if a.hint)
        raise problem_at(
            build, BACKEND, message, "; ".join(hints) or None, QUANTIZE, PRECISION, DEVICE
        )


@contextmanager
def placed(build: Build, *where: str) -> Iterator[None]:
    """What is wrong with a path of the user's is said where it stands: ``where`` is its key in the
    recipe. What is wrong with an adapter and its base is said of both."""
    try:
        yield
    except SourceError as error:
        if build.recipe.source.adapter is not None and where[0] == "source":
            where = ("source",)
        elif where not in dict(paths_of(build.recipe)):
            raise
        located = build.locate((where,), error.message)
        raise SourceError(located.message, hint=error.hint, problems=located.problems) from None


def _rules(build: Build, options: BaseModel) -> list[Advice]:
    """What the rules say of every model: those that look at the model say nothing."""
    job = Job(build.recipe, options)
    return [
        *rules.check(job, model_rules.RULES),
        *rules.check(job, backends.load(build.recipe.backend).rules),
    ]


def _device(build: Build) -> Device:
    try:
        return device.load(build.recipe.device, build.folder)
    except PhipipeError as error:
        if error.problems:  # in a device file of the user's
            raise
        located = build.locate((DEVICE,), error.message)
        raise type(error)(located.message, hint=error.hint, problems=located.problems) from None


def _unit(build: Build, target: Device) -> Unit:
    """The first unit of the device that the backend serves at the recipe's precision."""
    recipe = build.recipe
    units = [unit for unit in target.units if recipe.unit in (None, unit.api)]
    if not units:
        known = [unit.api for unit in target.units]
        message = f"{target.title} has no unit `{recipe.unit}`{near(str(recipe.unit), known)}"
        raise problem_at(build, UNIT, message, f"its units: {', '.join(known)}")
    target = target.model_copy(update={"units": tuple(units)})
    for unit in units:
        if recipe.precision in backends.able(recipe.backend, target, unit):
            return unit
    others = [f"`{name}`" for name in backends.serving(target, recipe.precision)]
    precisions = [p for unit in units for p in backends.able(recipe.backend, target, unit)]
    if not precisions:
        where = f" ({recipe.unit})" if recipe.unit else ""
        message = f"backend `{recipe.backend}` does not run on {target.title}{where}"
        works = f"for {recipe.precision} there: {', '.join(others)}" if others else target.notes
        raise problem_at(build, BACKEND, message, works or "nothing is built for it", UNIT, DEVICE)
    works = f"with `{recipe.backend}`: {', '.join(dict.fromkeys(precisions))}"
    works += f"; {recipe.precision} with: {', '.join(others)}" if others else ""
    message = f"`{recipe.backend}` cannot run {recipe.precision} on {target.title}"
    raise problem_at(build, PRECISION, message, f"what works {works}", BACKEND, UNIT, DEVICE)


def _options(build: Build, target: Device, unit: Unit) -> BaseModel:
    """The recipe's options, with the device's own values where the recipe leaves a choice."""
    options = build.options
    assert options is not None  # load() knows every backend that backends.load() accepts
    wrong: list[PhipipeError] = []
    for name, allowed in unit.constraints.get(build.recipe.precision, {}).items():
        if name not in type(options).model_fields or getattr(options, name) in allowed:
            continue
        if name in options.model_fields_set:
            choice = " or ".join(str(value).lower() for value in allowed)
            message = (
                f"{target.title} runs {build.recipe.precision} only with `{name}` = {choice}, "
            )
            message += f"not {str(getattr(options, name)).lower()}"
            hint = f"set `quantize.{name}: {str(allowed[0]).lower()}` or leave it out"
            wrong.append(problem_at(build, ("quantize", name), message, hint))
        options = options.model_copy(update={name: allowed[0]})
    if wrong:
        raise failures.as_one(wrong)
    known = type(options).model_fields.keys() - options.model_fields_set
    usual = {
        name: v
        for name, v in unit.defaults.get(build.recipe.precision, {}).items()
        if name in known
    }
    return options.model_copy(update=usual)
