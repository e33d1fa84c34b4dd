"""What a package was made of: files that came from outside, and what the toolchains had.

Everything here follows from the manifest alone, so that a reader finds the same as the writer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from phipipe.package.description import Description, Origin, Source, Step
from phipipe.recipe.source import COMMIT, REPO

FETCHED, TAKEN = "hub/fetch", "hub/take"  # the steps that bring files, as their `runs` says
TEXTS: Mapping[str, str] = {
    "text": "evaluation text",
    "calibration-text": "calibration text",
    "prompts": "prompts",
}
"""Steps that bring texts, and what those are for; all others that bring files bring the model."""


@dataclass(frozen=True)
class Hub:
    """A repository on the hub at a commit; ``kind`` is "model" or "dataset"."""

    kind: str
    repo: str
    revision: str


@dataclass(frozen=True)
class Material:
    """A file that a step brought into the build; ``hub`` and ``builtin`` say from where, if neither
    does, it was a local one."""

    step: str
    path: str
    size: int
    sha256: str
    hub: Hub | None = None
    builtin: str | None = None

    @property
    def purpose(self) -> str | None:
        """What a text is for; None of the model's files."""
        return TEXTS.get(self.step)

    @property
    def uri(self) -> str | None:
        """Where it can be had again; None of a local file."""
        if self.hub is not None and self.hub.kind == "model":
            return purl(self.hub.repo, self.hub.revision)
        if self.hub is not None:
            return f"hf://datasets/{self.hub.repo}@{self.hub.revision}/{self.path}"
        return None if self.builtin is None else f"urn:phipipe:builtin:{self.builtin}"


@dataclass(frozen=True)
class Toolchain:
    """What was installed where steps ran: package → version."""

    name: str
    packages: Mapping[str, str]

    @property
    def lines(self) -> list[str]:
        """One line for each package, sorted."""
        return sorted(f"{name}=={version}" for name, version in self.packages.items())

    @property
    def sha256(self) -> str:
        """SHA-256 over its lines, each with a line end."""
        return hashlib.sha256("".join(f"{line}\n" for line in self.lines).encode()).hexdigest()


def purl(repo: str, revision: str) -> str:
    """The package URL of a model on the hub, by purl's type ``huggingface``."""
    return f"pkg:huggingface/{repo}@{revision}"


def materials(described: Description) -> Iterator[Material]:
    """Every file that came from outside, by step and path."""
    for name, step in sorted(described.steps.items()):
        if step.runs not in (FETCHED, TAKEN):
            continue
        hub, builtin = hub_of(step), None if step.runs == FETCHED else _builtin(name, described)
        for file in sorted(step.outputs, key=lambda one: one.path):
            yield Material(name, file.path, file.size, file.sha256, hub, builtin)


def toolchains(described: Description) -> list[Toolchain]:
    """What steps ran in, by name; a toolchain that was installed anew between two steps counts
    twice. What an older phipipe made names none: it is called by its first step."""
    found: dict[tuple[str | None, str], Toolchain] = {}
    for name, step in sorted(described.steps.items()):
        if step.tools:
            toolchain = Toolchain(step.toolchain or name, step.tools)
            found.setdefault((step.toolchain, toolchain.sha256), toolchain)
    return sorted(found.values(), key=lambda one: (one.name, one.sha256))


def parts(source: Source) -> list[Origin | Source]:
    """What the original was made of: itself, or a base and its adapter."""
    if source.base is not None and source.adapter is not None:
        return [source.base, source.adapter]
    return [source]


def hub_of(step: Step) -> Hub | None:
    """The repository that a step's parameters name; a stranger's may name anything."""
    if step.runs != FETCHED:
        return None
    repo, revision = (str(step.params.get(key)) for key in ("repo", "revision"))
    if not re.fullmatch(REPO[1:-1], repo) or not re.fullmatch(COMMIT[1:-1], revision):
        return None
    kind = "dataset" if step.params.get("kind") == "dataset" else "model"
    return Hub(kind, repo, revision)


def _builtin(step: str, described: Description) -> str | None:
    """What of phipipe's own the step brought."""
    if step == "text":
        return described.recipe.evaluate.text.builtin
    if step in TEXTS:
        return None
    source = described.source
    origin = source.adapter if step == "adapter" else source.base or source
    return origin.name if origin is not None and origin.kind == "builtin" else None
