"""The original of a finished package: the very checkpoint that it was made from, wherever it is
now."""

from __future__ import annotations

from pathlib import Path

from phipipe.errors import SourceError
from phipipe.hub import repository, take
from phipipe.hub.client import Repository
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
    if repo and given is None and repository.is_known(repo):
        return _from_hub(manifest, repo)
    folder = given or _at_hand(manifest, store)
    if folder is not None:
        original = take.of_folder(folder)
        if not _is_original(manifest, folder, store):
            raise SourceError(f"`{folder}` is not the checkpoint that this package was made from")
        return original
    if repo:
        return _from_hub(manifest, repo)
    raise SourceError(
        f"the original checkpoint of this package (`{source.name}`) is not in the cache any more",
        hint="give its folder: --source DIR",
    )


def _merged(manifest: Manifest, store: Store) -> Original:
    """The merged model from the cache, or of its two parts, from wherever they can be had."""
    source = manifest.source
    folder = _at_hand(manifest, store)
    if folder is not None:
        return take.of_folder(folder)
    parts = {"base": source.base, "adapter": source.adapter}
    if local := [name for name, part in parts.items() if part and part.kind == "path"]:
        raise SourceError(
            f"the original of this package, {source.title}, is not in the cache any more, and its "
            f"{' and '.join(local)} came from local folders",
            hint="build the package again; or give the folder of the merged model: --source DIR",
        )
    named = {name: _keys(part) for name, part in parts.items() if part}
    original = take.original(Source.model_validate(named), Path())
    for step in original.before:
        if step.params != manifest.steps[step.name].params:
            raise SourceError(
                f"{source.title} is published with other files than those this package was made "
                f"from"
            )
    return original


def _keys(part: Origin) -> dict[str, str]:
    if part.kind == "builtin":
        return {"builtin": str(part.name)}
    return {"repo": str(part.repo), "revision": str(part.revision)}


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
    if not folder.is_dir():
        return None
    stored = gguf_files.alone_in(folder)
    return stored if _is_original(manifest, stored, store) else None


def _is_original(manifest: Manifest, folder: Path, store: Store) -> bool:
    return bool(digests.digest(take.outside(folder), store.root) == manifest.source.digest)


def _from_hub(manifest: Manifest, repo: Repository) -> Original:
    """The original as ``run`` had it: the same commit, the same published hashes."""
    try:
        checkpoint, view = repository.checkpoint_of(repo)
        step = repository.source_step(repo, view)
        steps = manifest.steps
        first = next(name for name in (take.STORED, "original", "source") if name in steps)
        if step.params != steps[first].params:
            raise SourceError(
                f"`{repo}` is published with other files than those this package was made from"
            )
    except SourceError as error:
        here = "if you have the original, give its folder: --source DIR"
        raise SourceError(
            error.message, hint=f"{error.hint}; {here}" if error.hint else here
        ) from None
    return take.of_step(checkpoint, step, view.licence)
