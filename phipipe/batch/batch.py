"""Many recipes at once: planned together, run as one graph, and put where the next batch finds what
it needs.

``OUT/NAME/VERSION/`` are packages, VERSION the beginning of the package's digest: what is there is
never written again. ``OUT/NAME/latest`` is a file with one line, the version that was accepted
last: its gates passed, and it is not worse than its predecessor by more than the recipe's
``evaluate.tolerance``. A batch compares with that version, not with whatever the batch before made:
what was refused yesterday is refused again today, until the recipe tolerates it or somebody removes
``latest``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from phipipe.batch import accept
from phipipe.batch import folder as batch_folder
from phipipe.batch.accept import Done
from phipipe.batch.folder import DIGITS, LOCK
from phipipe.batch.selection import Item
from phipipe.batch.undisturbed import undisturbed
from phipipe.errors import PhipipeError, RecipeError, Skipped, SourceError, StoreError
from phipipe.execution import dispatch, preflight
from phipipe.execution.manner import Engine, Manner
from phipipe.execution.results import Listener
from phipipe.package import manifest, places
from phipipe.planning import sampled
from phipipe.planning.alike import Planner
from phipipe.settings import Settings
from phipipe.signing import recipe_key
from phipipe.store import claims, free_space, refusals
from phipipe.store.store import Store

# names in a batch's folder that are no build's
RESERVED = frozenset(("batch.json", "junit.xml", "board.html", "board.json", "board.md", "boards"))


@undisturbed()
def plan(
    items: Sequence[Item], store: Store, settings: Settings, out: Path, *, elsewhere: bool = False
) -> list[str]:
    """Plan every item that can be; the others get their ``error``. Returns warnings.

    ``elsewhere``: steps look for machines that are large enough, and have their toolchains.

    Raises:
        StoreError: the disk has no room for all of it.
    """
    prepare(items, out, elsewhere=elsewhere)
    return (
        [] if elsewhere else _preflight([item for item in items if item.plan], store, settings, out)
    )


def prepare(items: Sequence[Item], out: Path | None, *, elsewhere: bool = False) -> None:
    """Plan every item that can be, whatever this machine has room for; the others get their
    ``error``. ``out`` is where packages go, if they go anywhere.

    Raises:
        StoreError: ``out`` is a package, or lies in one.
    """
    planner = Planner(elsewhere=elsewhere)
    if out is not None:
        places.refuse_inside(out)
    for item in items:
        if item.build is None:
            continue
        try:
            if out is not None:
                _check_place(item.name, out)
                recipe_key.of_build(item.build)  # it signs what is built here
            item.plan = planner.plan(item.build)
        except PhipipeError as error:
            item.error = error
    planned = [(item, item.plan) for item in items if item.plan]
    plans = sampled.comparable([plan for _, plan in planned])
    for (item, _), plan in zip(planned, plans, strict=True):
        item.plan = plan


def _check_place(name: str, out: Path) -> None:
    if name in RESERVED:
        raise RecipeError(
            f"a build of a batch cannot be called `{name}`", hint="change the recipe's `name:`"
        )
    if (out / name / manifest.NAME).exists():
        message = f"`{out / name}` is a package, where the batch keeps the versions of `{name}`"
        raise StoreError(message, hint="move it away, or choose another --out")


def _preflight(items: Sequence[Item], store: Store, settings: Settings, out: Path) -> list[str]:
    """Refuse builds that this machine has too little memory for, and the batch if the disk is too
    small."""
    plans = [item.plan for item in items if item.plan]
    warnings = []
    for i, refusal in preflight.too_large(plans, store, settings).items():
        if settings.preflight:
            items[i].error, items[i].plan = refusal, None
        else:
            warnings.append(refusal.message)
    if full := preflight.too_little_disk(
        [item.plan for item in items if item.plan], store, settings, out
    ):
        if settings.preflight:
            raise full
        warnings.append(full.message)
    return warnings


def run(
    items: Sequence[Item],
    store: Store,
    settings: Settings,
    listener: Listener,
    out: Path,
    *,
    jobs: int | None = None,
    keep: int = 3,
    fail_fast: bool = False,
    engine: Engine | None = None,
    publish: bool = True,
) -> list[Done]:
    """Build what is planned, and accept what is good enough.

    Args:
        keep: packages kept for each build that came to one, the one named by ``latest`` always
            among them.
        engine: see ``Manner``.
        fail_fast: start nothing more after the first failure; a refused item is one.
        publish: whether packages that are accepted go where their recipes publish them.

    Raises:
        Interrupted: what was finished is stored, and the next batch goes on from there.
    """
    first = next((item for item in items if item.error), None)
    if fail_fast and first:
        reason = Skipped(f"not built: `{first.name}` was refused")
        return [Done(item=i, error=i.error or reason, metrics={}, before={}) for i in items]
    planned = [item for item in items if item.plan]
    plans = [item.plan for item in planned if item.plan]
    manner = Manner(out=out, place=_place, jobs=jobs, fail_fast=fail_fast, engine=engine)
    outcomes = dispatch.attempt(plans, store, settings, listener, manner)
    results = {id(item): outcome for item, outcome in zip(planned, outcomes, strict=True)}
    told = listener.note
    with _locked(out, planned):
        own = {item.name: _digests(out / item.name) for item in items if _publishes(item)}
        done = [accept.finish(item, results.get(id(item)), out, keep, told) for item in items]
    return [_published(one, own, told) for one in done] if publish else done


def _publishes(item: Item) -> bool:
    return item.build is not None and bool(item.build.recipe.publish)


def _digests(home: Path) -> list[str]:
    """Of the packages that batches have made in ``home``, as far as they can be read."""
    found = []
    for path in batch_folder.versions(home) if home.is_dir() else ():
        with suppress(SourceError):
            found.append(manifest.read_manifest(path).digest)
    return found


def _published(done: Done, own: Mapping[str, Sequence[str]], note: Callable[[str], None]) -> Done:
    """Publish a package that was accepted, also in place of ``own``: those that batches made before
    it (build → digests)."""
    from phipipe.publishing import builds

    build, package = done.item.build, done.outcome.package if done.outcome else None
    if done.error or build is None or package is None or not build.recipe.publish:
        return done
    error = builds.publish(build, package, note, own[done.item.name])
    return replace(done, error=error) if error else done


def _place(out: Path, name: str, digest: str) -> Path:
    return out / name / digest[:DIGITS]


@contextmanager
def _locked(out: Path, planned: Iterable[Item]) -> Iterator[None]:
    """Nobody else accepts packages into ``out``; what batches that were killed left there is gone.

    Another batch may end at this moment: each compares with what the other accepted.
    """
    with refusals.guard(out, remedy=free_space.KEEP_OUT):
        out.mkdir(parents=True, exist_ok=True)
        locks_work = claims.locks_work(out / LOCK)
    with FileLock(out / LOCK):
        for folder in [out, *(out / item.name for item in planned)] if locks_work else ():
            batch_folder.sweep(folder)
        yield
