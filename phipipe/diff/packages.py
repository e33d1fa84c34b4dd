"""Two packages: what they are made of, and how good they are."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from phipipe.batch import accept, folder
from phipipe.diff import sampled
from phipipe.diff.changes import changes
from phipipe.diff.measured import Measured, figures, measured
from phipipe.errors import SourceError
from phipipe.evaluate import sampling
from phipipe.evaluate.reports import Metrics
from phipipe.output.diff import Difference, Pair
from phipipe.package import manifest
from phipipe.package.manifest_schema import Manifest
from phipipe.steps import Json


def compare(before: Path, after: Path) -> Difference:
    """What two packages differ in.

    Raises:
        SourceError: one of them is no package, or damaged.
    """
    old, new = manifest.read_manifest(before), manifest.read_manifest(after)
    alike = accept.comparable(old, new)
    notes = [] if "kld_mean" in alike else ["fidelity was measured on other tokens"]
    if old.speed.metrics and new.speed.metrics and "decode_tokens_per_s" not in alike:
        notes.append("speed was measured on another machine, or with another prompt")
    was, now = sampling.alike(old.fidelity, new.fidelity) or (old.fidelity, new.fidelity)
    notes += sampled.notes(old.fidelity, new.fidelity, old.fidelity.baseline.window)
    pair = Pair(
        before=old.name,
        after=new.name,
        inputs=changes(_inputs(old), _inputs(new)),
        figures=figures(
            _measured(old, was),
            _measured(new, now),
            alike,
        ),
        notes=notes,
    )
    return Difference(
        kind="packages",
        before=str(before),
        after=str(after),
        pairs=[pair],
        only_before=[],
        only_after=[],
    )


def _measured(told: Manifest, scored: Metrics) -> Measured:
    fidelity = told.fidelity
    return measured(scored, told.speed, fidelity.vision, fidelity.generation)


def versions(home: Path) -> tuple[Path, Path]:
    """The two versions of a batch's build ``home`` that were made last, the older one first.

    Raises:
        SourceError: there are not two.
    """
    known = folder.versions(home) if home.is_dir() else []
    if len(known) < 2:
        raise SourceError(
            f"`{home}` has no two versions to compare", hint="name two packages, recipes or runs"
        )
    return known[1], known[0]


_SOURCE = ("revision", "file", "base", "adapter", "digest")


def _inputs(told: Manifest) -> dict[str, Json]:
    tools: defaultdict[str, set[str]] = defaultdict(set)
    for step in told.steps.values():
        for name, version in step.tools.items():
            tools[name].add(version)
    source = told.source.as_json()
    return {
        "recipe": told.recipe.as_json(),
        "scheme": told.scheme,
        "source": {name: source[name] for name in _SOURCE if source.get(name)},
        "text": told.steps["text"].digest,
        "device": told.device.title,
        "fixups": sorted(told.fixups),
        "phipipe": told.phipipe,
        "tools": {name: ", ".join(sorted(versions)) for name, versions in tools.items()},
        "machine": dict(told.speed.host),
    }
