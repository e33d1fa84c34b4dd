"""The backend's steps, over a checkpoint that was smoothed before where the recipe asks for it."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel

from phipipe import backends
from phipipe.algorithms import smooth
from phipipe.backends.base import Job
from phipipe.steps import Step


def steps(job: Job[BaseModel]) -> list[Step]:
    """From ``source`` to the artifact: every backend reads a smoothed checkpoint as it would read
    the original."""
    face = backends.load(job.recipe.backend)
    if not smooth.asked(job.recipe):
        return face.steps(job)
    made = face.steps(replace(job, checkpoint=smooth.of(job.checkpoint)))
    return smooth.before(made, smooth.step(job.checkpoint, job.recipe, by_rows=face.by_rows(job)))


def scheme(job: Job[BaseModel]) -> str:
    """How the weights are stored, in the backend's words, and what was learned of them."""
    told = backends.load(job.recipe.backend).scheme(job)
    return f"{told}, {smooth.WORDS}" if smooth.asked(job.recipe) else told
