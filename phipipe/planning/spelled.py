"""A backend's options as a package's recipe spells them out: every default, as far as the recipe
can be built again with it.

Some rules refuse an option that is written where it has no use, whatever its value. Such a default
is left out; it has no use there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import BaseModel, ValidationError

from phipipe import backends
from phipipe.backends import model_rules, rules
from phipipe.backends.base import Job
from phipipe.steps import Advice, Json


def options(job: Job[BaseModel]) -> dict[str, Json]:
    """The options of ``job`` as JSON: all that somebody chose, and every default that may stand
    beside them without a rule saying anything else of the build."""
    chosen = job.options
    every: dict[str, Json] = chosen.model_dump(mode="json", exclude_none=True)
    kept = {name: value for name, value in every.items() if name in chosen.model_fields_set}
    usual = _said(job, kept)
    if _said(job, every) == usual:  # so it is nearly always
        return every
    for name in (name for name in every if name not in kept):
        if _said(job, kept | {name: every[name]}) == usual:
            kept[name] = every[name]
    return {name: value for name, value in every.items() if name in kept}


def _said(job: Job[BaseModel], written: Mapping[str, Json]) -> list[Advice] | None:
    """What all rules say of ``job`` with the options ``written``; None where those cannot be."""
    try:
        tried = replace(job, options=type(job.options).model_validate(dict(written)))
    except ValidationError:
        return None
    table = (*model_rules.RULES, *backends.load(job.recipe.backend).rules)
    return rules.check(tried, table)
