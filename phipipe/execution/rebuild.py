"""A finished package's own recipe, planned again.

A package names files of its maker's by their names alone, and never by a path: nothing of this
machine is read because a package says so. What it was made from is asked for by digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.hub import take
from phipipe.models import adapter_files, gguf_files
from phipipe.package.manifest_schema import Manifest
from phipipe.package.materials import FETCHED, TAKEN, TEXTS
from phipipe.planning import plans
from phipipe.planning.plan import Plan
from phipipe.recipe import written
from phipipe.recipe.build import paths_of
from phipipe.recipe.places import Where
from phipipe.recipe.recipe import recorded
from phipipe.settings import Settings
from phipipe.steps import Json, Outside, Step
from phipipe.store import digests, files, keys

RECIPE = "recipe.yaml"
SOURCES: Sequence[Where] = (("source", "path"), ("source", "base", "path"))
ADAPTER: Where = ("source", "adapter", "path")
DEVICE: Where = ("device",)
_TEXT_STEPS: Mapping[Where, str] = {
    ("evaluate", "text", "file"): "text",
    ("evaluate", "generate", "prompts", "file"): "prompts",
    ("calibrate", "text", "file"): "calibration-text",
}


@dataclass(frozen=True, kw_only=True)
class Given:
    """What of the maker's own files is there: the original or an adapter's base; the adapter; texts
    and prompts, in any order; the device file."""

    source: Path | None = None
    adapter: Path | None = None
    texts: Sequence[Path] = ()
    device: Path | None = None


def planned(manifest: Manifest, given: Given, workspace: Path) -> Plan:
    """The plan of the package with that ``manifest``; the recipe and texts are laid into
    ``workspace``.

    Raises:
        SourceError: something that it was made from is missing, by name and digest, or ``given`` is
            something else; the recipe is not one that this phipipe reads.
        PhipipeError: as ``plans.planned``.
    """
    try:
        recipe = recorded(manifest.recipe.as_json())
    except ValidationError as error:
        raise SourceError(
            f"the package's recipe is not one that this phipipe reads: "
            f"{error.errors(include_url=False)[0]['msg']}",
            hint=f"it was made by phipipe {manifest.phipipe}: install that version",
        ) from None
    named = dict(paths_of(recipe))
    found = _found(manifest, named, given, workspace)
    data = json.loads(recipe.model_dump_json(exclude_none=True, exclude_unset=True))
    for where, path in found.items():
        _set(data, where, str(path))
    (workspace / RECIPE).write_text(written.text(data), "utf-8")
    (plan,) = plans.planned(workspace / RECIPE)
    return _named_as_before(plan, manifest, named)


# --- what does not travel


def _found(
    manifest: Manifest, named: Mapping[Where, str], given: Given, workspace: Path
) -> dict[Where, Path]:
    """For each of the maker's files that the recipe names, where it lies here."""
    texts = {keys.hash_file(path): path.absolute() for path in given.texts}
    found: dict[Where, Path] = {}
    missing: list[str] = []
    for where, name in named.items():
        path = _one(manifest, where, name, given, texts, workspace)
        if path is None:
            missing.append(_described(manifest, where, name))
        else:
            found[where] = path
    if missing:
        raise SourceError(
            f"the package was made from files that do not travel with it: {'; '.join(missing)}",
            hint=f"give them: {_options(named)}",
        )
    _refuse_others(manifest, named, given, texts)
    return found


def _one(
    manifest: Manifest,
    where: Where,
    name: str,
    given: Given,
    texts: Mapping[str, Path],
    workspace: Path,
) -> Path | None:
    if where in _TEXT_STEPS:
        digest, recorded_name = _text(manifest, _TEXT_STEPS[where])
        return _under(workspace / str(where[0]), texts.get(digest), recorded_name)
    if where == DEVICE:
        return _under(workspace, given.device, name)
    path = given.adapter if where == ADAPTER else given.source
    if path is not None:
        _check(path.absolute(), name, manifest, is_adapter=where == ADAPTER)
    return None if path is None else path.absolute()


def _text(manifest: Manifest, step: str) -> tuple[str, str]:
    """Digest and name of the file that a step took in."""
    outputs = manifest.steps[step].outputs if step in manifest.steps else []
    if len(outputs) != 1:
        raise SourceError(f"the package's manifest does not say which file its {TEXTS[step]} is")
    return outputs[0].sha256, outputs[0].path


def _under(folder: Path, path: Path | None, name: str) -> Path | None:
    """A copy of the small file ``path`` in ``folder``, under the name that decided keys."""
    if path is None:
        return None
    folder.mkdir(exist_ok=True)
    files.copy(path, folder / Path(name).name)
    return folder / Path(name).name


def _check(path: Path, name: str, manifest: Manifest, *, is_adapter: bool) -> None:
    """Refuse an original or an adapter that is not the one that the package was made from."""
    outside = Outside(path, tuple(adapter_files.files(path))) if is_adapter else take.outside(path)
    taken = {step.digest for step in manifest.steps.values() if step.runs in (TAKEN, FETCHED)}
    if digests.digest(outside, Settings.read().cache) in taken:
        return
    if gguf_files.is_one(path) and path.name != name:
        raise SourceError(
            f"`{path}` is not the GGUF that this package was made from, or has another name",
            hint=f"it was called `{json_files.shown(name)}` then, and its name counts",
        )
    what = "adapter" if is_adapter else "checkpoint"
    raise SourceError(f"`{path}` is not the {what} that this package was made from")


def _described(manifest: Manifest, where: Where, name: str) -> str:
    """A file that is missing, by what it is for, its name and its digest."""
    shown = f"`{json_files.shown(name)}`"
    if where in _TEXT_STEPS:
        step = _TEXT_STEPS[where]
        return f"the {TEXTS[step]} {shown} (SHA-256 {_text(manifest, step)[0]})"
    if where == DEVICE:
        return f"the device file {shown}"
    if where == ADAPTER:
        return f"the adapter {shown} (digest {manifest.steps['adapter'].digest})"
    if where == SOURCES[0]:
        return f"the original {shown} (digest {manifest.source.digest})"
    return f"the adapter's base {shown} (digest {_base_digest(manifest)})"


def _base_digest(manifest: Manifest) -> str:
    step = next((manifest.steps[n] for n in ("stored", "base") if n in manifest.steps), None)
    return manifest.source.digest if step is None else step.digest


def _options(named: Mapping[Where, str]) -> str:
    options = {
        "--source PATH": any(where in named for where in SOURCES),
        "--adapter FOLDER": ADAPTER in named,
        "--text FILE": any(where in named for where in _TEXT_STEPS),
        "--device FILE": DEVICE in named,
    }
    return " ".join(option for option, needed in options.items() if needed)


def _refuse_others(
    manifest: Manifest, named: Mapping[Where, str], given: Given, texts: Mapping[str, Path]
) -> None:
    """Refuse what was given and is no part of the build."""
    wanted = {_text(manifest, _TEXT_STEPS[where])[0] for where in named if where in _TEXT_STEPS}
    for digest, path in texts.items():
        if digest not in wanted:
            raise SourceError(
                f"`{path}` (SHA-256 {digest}) is none of the texts that this package was made from"
            )
    unused: Mapping[str, tuple[Path | None, bool]] = {
        "source": (given.source, any(where in named for where in SOURCES)),
        "adapter": (given.adapter, ADAPTER in named),
        "device": (given.device, DEVICE in named),
    }
    for option, (other, needed) in unused.items():
        if other is not None and not needed:
            raise SourceError(
                f"the package was made from no {option} of its maker's own",
                hint=f"leave --{option} out",
            )


# --- as it was called


def _named_as_before(plan: Plan, manifest: Manifest, named: Mapping[Where, str]) -> Plan:
    """``plan``, whose package calls the maker's files by the names that they had then. They are the
    same by digest, and are called otherwise here."""
    return replace(
        plan,
        steps=tuple(
            _renamed(step, manifest, named) if step.provenance else step for step in plan.steps
        ),
    )


def _renamed(step: Step, manifest: Manifest, named: Mapping[Where, str]) -> Step:
    params: dict[str, Json] = json.loads(json.dumps(dict(step.params)))
    for where, name in named.items():
        _set(params["recipe"], where, name)
    source = manifest.source.as_json()
    for where, part in _parts(params["source"]):
        if part["kind"] in ("path", "adapter"):
            part["name"] = _at(source, where)["name"]
    return replace(step, params=params)


def _parts(source: dict[str, Json]) -> Iterator[tuple[Where, dict[str, Json]]]:
    yield (), source
    for key in ("base", "adapter"):
        if key in source:
            yield (key,), source[key]


def _at(data: dict[str, Json], where: Where) -> dict[str, Json]:
    for key in where:
        data = data[str(key)]
    return data


def _set(data: dict[str, Json], where: Where, value: str) -> None:
    *folders, last = where
    _at(data, tuple(folders))[str(last)] = value
