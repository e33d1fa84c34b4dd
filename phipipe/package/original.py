"""The original of a finished package: the very checkpoint that it was made from, wherever it is
now."""

from __future__ import annotations

from pathlib import Path

from phipipe.errors import SourceError
from phipipe.hub import repository, take
from phipipe.hub.client import Repository
from phipipe.hub.mending import UNMENDED, Changes, mended
from phipipe.hub.take import Original
from phipipe.models import gguf_files
from phipipe.package.description import Origin
from phipipe.package.manifest_schema import Manifest
from phipipe.recipe.source import Source
from phipipe.store import digests
from phipipe.store.store import Store


def find(manifest: Manifest, store: Store, given: Path | None) -> Original:
    """The package's original: ``given``, or phipipe's own, or the cache's, or from its hub
    again."""
    source = manifest.source
    if source.kind == "adapter" and given is None:
        return _merged(manifest, store)
    repo = (
        Repository("model", str(source.repo), str(source.revision))
        if source.kind == "hub"
        else None
    )
    # the cache has it as it came, or brings it: no copy is made
    if repo and given is None and repository.is_known(repo, source.file):
        return _from_hub(manifest, repo)
    folder = given or _at_hand(manifest, store)
    if folder is not None:
        return _of_folder(manifest, folder, store)
    if repo:
        return _from_hub(manifest, repo)
    raise SourceError(
        f"the original checkpoint of this package (`{source.name}`) is not in the cache any more",
        hint="give its folder or GGUF: --source PATH",
    )


def _merged(manifest: Manifest, store: Store) -> Original:
    """The merged model from the cache, or of its two parts, from wherever they can be had."""
    source = manifest.source
    folder = _at_hand(manifest, store)
    if folder is not None:
        return _of_folder(manifest, folder, store)
    parts = {"base": source.base, "adapter": source.adapter}
    if local := [name for name, part in parts.items() if part and part.kind == "path"]:
        raise SourceError(
            f"the original of this package, {source.title}, is not in the cache any more, and its "
            f"{' and '.join(local)} came from local folders",
            hint="build the package again; or give the folder of the merged model: --source PATH",
        )
    named = {name: _keys(part) for name, part in parts.items() if part}
    original = take.original(Source.model_validate(named), Path())
    for step in original.before:
        if step.params != manifest.steps[step.name].params:
            raise SourceError(
                f"{source.title} is published with other files than those this package was made "
                f"from"
            )
    changes = _changes(manifest)
    return mended(original, changes) if changes else original


def _keys(part: Origin) -> dict[str, str]:
    if part.kind == "builtin":
        return {"builtin": str(part.name)}
    file = {"file": part.file} if part.file else {}
    return {"repo": str(part.repo), "revision": str(part.revision), **file}


def _at_hand(manifest: Manifest, store: Store) -> Path | None:
    source = manifest.source
    if source.kind == "builtin":
        if source.name not in take.BUILTIN_MODELS:
            raise SourceError(
                f"phipipe has no model `{source.name}` of its own, which the package names "
                f"as its source"
            )
        return take.BUILTIN_MODELS[source.name]
    folder = store.root / "objects" / source.digest
    if folder.is_dir():
        stored = gguf_files.alone_in(folder)
        return stored if _is_original(manifest, stored, store) else None
    return _where_it_lies(manifest, store)


def _where_it_lies(manifest: Manifest, store: Store) -> Path | None:
    """The user's folder or GGUF that was never copied into the cache, if it is what it was: the
    original itself, or what it was mended from."""
    came = [manifest.source.digest]
    came += [manifest.steps[UNMENDED].digest] if UNMENDED in manifest.steps else []
    for digest in came:
        place = store.lent(digest)
        if place is not None and place.exists() and _digest(place, store) == digest:
            return place
    return None


def _is_original(manifest: Manifest, folder: Path, store: Store) -> bool:
    return _digest(folder, store) == manifest.source.digest


def _digest(folder: Path, store: Store) -> str:
    return digests.digest(take.outside(folder), store.root)


def _of_folder(manifest: Manifest, folder: Path, store: Store) -> Original:
    """The checkpoint in ``folder``, if it is what the package was made from, as it came or as it
    was mended."""
    original, changes = take.of_folder(folder), _changes(manifest)
    digest = _digest(folder, store)
    if digest == manifest.source.digest:
        return mended(original, changes) if changes and original.before else original
    if changes and digest == manifest.steps[UNMENDED].digest:
        return mended(original, changes)
    raise SourceError(f"`{folder}` is not the checkpoint that this package was made from")


def _changes(manifest: Manifest) -> Changes:
    """What was set in the staged copy of files that had come otherwise; nothing where they were
    taken as they came."""
    steps = manifest.steps
    if UNMENDED not in steps:
        return {}
    made = steps.get("original") or steps["source"]
    changes = made.params.get("settings")
    if not isinstance(changes, dict) or not all(isinstance(c, dict) for c in changes.values()):
        raise SourceError("this package's manifest does not say how its original was mended")
    return changes


def _from_hub(manifest: Manifest, repo: Repository) -> Original:
    """The original as ``run`` had it: the same commit, the same published hashes."""
    try:
        original = take.of_hub(repo, manifest.source.file)
        step, *_ = (*original.before, original.step)
        steps = manifest.steps
        names = (take.STORED, UNMENDED, "original", "source")
        first = next(name for name in names if name in steps)
        if step.params != steps[first].params:
            raise SourceError(
                f"`{repo}` is published with other files than those this package was made from"
            )
    except SourceError as error:
        here = "if you have the original, give its folder or GGUF: --source PATH"
        raise SourceError(
            error.message, hint=f"{error.hint}; {here}" if error.hint else here
        ) from None
    changes = _changes(manifest)
    return mended(original, changes) if changes else original
