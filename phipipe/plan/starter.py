"""The recipe that ``phipipe init`` writes: small, commented, for the device's first unit; it
validates and plans."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from phipipe import backends, failures
from phipipe.errors import PhipipeError, RecipeError, TargetError
from phipipe.files import user_paths
from phipipe.hub import client
from phipipe.hub import take as hub
from phipipe.hub.client import Repository
from phipipe.hub.failures import Unreachable
from phipipe.models import checkpoints
from phipipe.output import documents
from phipipe.plan import targets
from phipipe.recipe import device as devices
from phipipe.recipe import load
from phipipe.recipe.complaints import complaints
from phipipe.recipe.document import parse, read
from phipipe.recipe.recipe import COMMIT, REPO, Recipe
from phipipe.recipe.scalars import resolve
from phipipe.recipe.variants import BACKEND
from phipipe.store import free_space

SCHEMA = "recipe.schema.json"
SHIPPED = (
    Path(__file__).parents[2] / "recipes"
)  # phipipe's own, where it is not installed from a wheel
PRECISIONS = ("int4", "int8", "fp16", "fp32")
PRINTABLE = re.compile("[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*")
KEPT = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?"
)  # by Windows: no folder can have such a name
TEMPLATE = """\
# yaml-language-server: $schema={schema}
# {name}: {precision} for {title}. Change a line, then look at what it does:
#   phipipe plan {file}
#   phipipe run {file}
# For completion in your editor: phipipe schema --write {schema_file}
name: {name}
source: {source}
device: {device}          # phipipe devices
backend: {backend}        # phipipe backends
precision: {precision}            # int4, int8, fp16, fp32
{options}evaluate:
  {text}
  tokens: 4096
  gates:                     # nothing is packaged outside of these limits
    kld_mean: {{max: 0.1}}
    top1: {{min: 0.8}}
"""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A source as a recipe says it; of a hub where ``hub``, at a commit unless ``pinned`` is
    false."""

    said: Mapping[str, str]
    hub: bool = False
    pinned: bool = True
    note: str | None = None


def write(
    path: Path, *, device: str, precision: str | None, backend: str | None, source: str
) -> tuple[documents.Started, tuple[str, ...]]:
    """Write a starter recipe to ``path``, and its folder where there is none; an existing file
    stays as it is.

    Args:
        device: a device, or a device file, relative to the working folder.
        precision: None: what the device's own recipe has, or the smallest that fits.
        backend: None: what the device's own recipe has, or one that fits its first unit.
        source: ``builtin:NAME``, a folder, or ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` of the hub,
            which is asked for the commit.

    Returns:
        What was written, with the commands that come next; what to know.

    Raises:
        RecipeError: the file is there already or cannot be written, or a value is none that a
            recipe takes.
        TargetError: there is no such device, or nothing is built for it that way.
        SourceError: the hub knows no such repository or revision.
    """
    if not all(PRINTABLE.fullmatch(text) for text in (str(path), device, source)):
        raise RecipeError(
            "a name with characters that no recipe can hold", hint="use letters, digits, `-`, `_`"
        )
    if os.path.lexists(path):
        raise RecipeError(f"`{path}` is there already", hint="choose another name")
    if odd := user_paths.problem(path, user_paths.Kind.NEW_FILE):
        raise RecipeError(
            f"cannot write `{user_paths.shown(path)}`: it {odd}", hint="choose another name"
        )
    folder = user_paths.resolved(path.parent)
    target = devices.load(device, Path())
    wanted = _source(source, folder)
    told = _within(wanted, _fitting(target, precision, backend))
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower())[:80].strip("-._") or "recipe"
    name = f"{name[:73]}-recipe" if KEPT.fullmatch(name) else name
    shown = device if device in devices.names() else _seen_from(folder, device)
    head = {"name": name, "device": shown, "title": target.title}
    with _folder(path.parent):
        text, unit = _checked(_text(path, head, told, wanted), path, wanted)
        _create(path, text)
    commands = [
        f"phipipe {verb} {_word(path)}"
        for verb in (("plan",) if wanted.pinned else ("pin", "plan"))
    ]
    started = documents.Started(
        recipe=str(path),
        name=name,
        device=shown,
        unit=unit,
        backend=told["backend"],
        precision=told["precision"],
        pinned=wanted.pinned,
        next=commands,
    )
    return started, (wanted.note,) if wanted.note else ()


def _text(path: Path, head: Mapping[str, str], told: Mapping[str, Any], source: _Source) -> str:
    shipped = (
        path.parent / "../schemas" / SCHEMA
    )  # the layout of phipipe's own repository, and of those like it
    schema = f"../schemas/{SCHEMA}" if shipped.is_file() else SCHEMA
    lines = [f"{key}: {_flow(told[key])}" for key in ("context", "quantize") if key in told]
    if "quantize" not in told:
        lines.append(
            f"# quantize: {{}}             # phipipe backends {told['backend']} lists the options"
        )
    calibrate = dict(told.get("calibrate", {}))
    if "path" in source.said:
        calibrate["text"] = {"builtin": "stories"}  # what a folder's model learns from must be said
    if calibrate:
        lines.append(f"calibrate: {_flow(calibrate)}   # what options that look at data learn from")
    mark = "" if source.pinned else f"   # not pinned yet: phipipe pin {_word(path)}"
    yours = "{file: my-text.txt}: use text like that of your task"
    usual = f"# text: WikiText-2 (test), unless you name {yours}"
    return TEMPLATE.format(
        schema=schema,
        schema_file=_word(path.parent / schema),
        file=_word(path),
        title=head["title"],
        name=_scalar(head["name"]),
        device=_scalar(head["device"]),
        backend=told["backend"],
        precision=told["precision"],
        source=_flow(source.said) + mark,
        options="".join(f"{line}\n" for line in lines),
        text=usual
        if source.hub
        else "text: {builtin: stories}   # or {file: my-text.txt}: use text like that of your task",
    )


# --- what fits


def _preferred() -> list[str]:
    """Names of all backends; of several that fit, the first is taken."""
    return sorted(backends.names(), key=lambda name: (backends.load(name).rank, name))


def _fitting(target: devices.Device, precision: str | None, backend: str | None) -> dict[str, Any]:
    """``backend`` and ``precision``, and the options of the device's own recipe where they are its
    own.

    Raises:
        TargetError: the device cannot do it.
    """
    asked = [backend] if backend is not None else _preferred()
    served = [{name: backends.able(name, target, unit) for name in asked} for unit in target.units]
    own = _own_recipe(target)
    for able in served:
        if own and own["precision"] == (precision or own["precision"]) in able.get(
            own["backend"], ()
        ):
            return own
        for wanted in (precision,) if precision else PRECISIONS:
            if fits := [name for name in asked if wanted in able[name]]:
                return {"backend": fits[0], "precision": wanted}
    every = {
        name: {p for unit in target.units for p in backends.able(name, target, unit)}
        for name in _preferred()
    }
    there = [
        f"{name}: {', '.join(sorted(found, key=PRECISIONS.index))}"
        for name, found in every.items()
        if found
    ]
    who, what = f"`{backend}`" if backend else "no backend", precision or "anything"
    verb = "does not build" if backend else "builds"
    hint = f"what works: {'; '.join(there)}" if there else target.notes
    raise TargetError(f"{who} {verb} {what} for {target.title}", hint=hint)


def _within(source: _Source, told: dict[str, Any]) -> dict[str, Any]:
    """``told`` with no more context than an embedded model has."""
    embedded = hub.BUILTIN_MODELS.get(source.said.get("builtin", ""))
    if embedded is None or "context" not in told:
        return told
    return {**told, "context": min(told["context"], checkpoints.read(embedded).context_length)}


def _own_recipe(target: devices.Device) -> dict[str, Any]:
    """What the device's own recipe says of the target; nothing where it is not at hand."""
    with contextlib.suppress(RecipeError):
        found = read(SHIPPED / f"{target.recipe}.yaml").data if target.recipe else {}
        keys = ("backend", "precision", "context", "quantize", "calibrate")
        return (
            {"backend": BACKEND, **{key: found[key] for key in keys if key in found}}
            if found
            else {}
        )
    return {}


# --- the source


def _source(text: str, folder: Path) -> _Source:
    """What ``text`` names, as a recipe in ``folder`` says it."""
    if text.startswith("builtin:"):
        return _Source(said={"builtin": text.removeprefix("builtin:")})
    name, _, revision = text.partition("@")
    if "@" in text and not revision and re.fullmatch(REPO[1:-1], name):
        raise RecipeError(f"`{text}` names no revision", hint=f"--source {name}, or {name}@BRANCH")
    is_path = text.startswith((".", "~")) or _is_folder(text)
    if is_path or not re.fullmatch(REPO[1:-1], name):
        odd = user_paths.problem(user_paths.inside(Path(), text), user_paths.Kind.FOLDER, text)
        note = (
            None
            if _is_folder(text)
            else f"`{text}` {odd}"
            if odd
            else f"there is no folder `{text}` yet"
        )
        return _Source(said={"path": _seen_from(folder, text)}, note=note if text else None)
    if re.fullmatch(COMMIT[1:-1], revision):
        return _Source(said={"repo": name, "revision": revision}, hub=True)
    revision = revision or "main"
    try:
        commit = client.commit_of(Repository("model", name, revision))
    except Unreachable as error:
        note = (
            f"the commit of `{name}` is not known, so that the recipe is not pinned yet: "
            f"{error.message}"
        )
        return _Source(said={"repo": name, "revision": revision}, hub=True, pinned=False, note=note)
    return _Source(said={"repo": name, "revision": commit}, hub=True)


def _is_folder(text: str) -> bool:
    try:
        return Path(text).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # too long; a NUL; nobody's home
        return False


def _seen_from(folder: Path, text: str) -> str:
    """The path ``text``, which counts from the working folder, as one that counts from
    ``folder``."""
    path = Path(text)
    if not text or path.is_absolute() or text.startswith("~"):
        return text
    whole = Path.cwd() / path
    inner = whole.name not in ("", "..")  # what is itself a link stays one
    whole = user_paths.resolved(whole.parent) / whole.name if inner else user_paths.resolved(whole)
    try:
        found = Path(os.path.relpath(whole, folder)).as_posix()
    except ValueError:  # on another drive
        return str(whole)
    return str(whole) if found.startswith("~") else found  # which would be somebody's home


# --- the file


def _checked(text: str, path: Path, source: _Source) -> tuple[str, str]:
    """``text``, and the unit that its build is for.

    Raises:
        RecipeError, TargetError: it is no recipe that can be built.
    """
    stand_in = (
        text
        if source.pinned
        else text.replace(_flow(source.said), _flow({**source.said, "revision": "0" * 40}))
    )
    document = parse(stand_in, str(path))
    try:
        Recipe.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        found = [
            f"{'.'.join(map(str, where))}: {message}"
            for where, message, _ in complaints(error, Recipe)
        ]
        raise RecipeError("\n".join(found)) from None
    builds, wrong = load.of_document(
        document, user_paths.resolved(path.parent), options=backends.OptionsOf()
    )
    errors: Sequence[PhipipeError] = [*([wrong] if wrong else []), *targets.problems(builds)]
    if errors:
        whole = failures.as_one(errors)  # of a file that nobody has seen: its places help nobody
        words = [problem.message for problem in whole.problems] or [whole.message]
        raise type(whole)("; ".join(words), hint=whole.hint)
    return text, targets.of(builds[0]).unit.api


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """``folder``, made if it is not there; and gone again if nothing comes into it."""
    missing = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"cannot write into `{folder}`: {getattr(error, 'strerror', error)}"
        ) from None
    try:
        yield
    except BaseException:
        for one in missing:
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


def _create(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8", newline="\n") as stream:
            try:
                stream.write(text)
                stream.flush()
            except OSError:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError:
        raise RecipeError(f"`{path}` is there already", hint="choose another name") from None
    except OSError as error:
        if error.errno in free_space.FULL:
            raise free_space.error(
                [free_space.Folder(path.parent, "make room there, or choose another folder")],
                reason=str(error.strerror),
            ) from None
        raise RecipeError(
            f"cannot write `{path}`: {error.strerror}", hint="choose another folder"
        ) from None
    except ValueError as error:
        raise RecipeError(f"cannot write `{path}`: {error}", hint="choose another name") from None


def _word(path: Path) -> str:
    """``path`` as a word of a command line that can be copied."""
    text = f"./{path}" if str(path).startswith("-") else str(path)
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


def _flow(value: Any) -> str:
    """``value`` as YAML on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_flow(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return _scalar(value) if isinstance(value, str) else json.dumps(value)


def _scalar(text: str) -> str:
    """``text`` as YAML reads it back: plain where it can be, else in double quotes."""
    plain = re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*", text) and isinstance(
        resolve(text), str
    )
    plain = plain and text.lower() not in (
        "y",
        "n",
        "yes",
        "no",
        "on",
        "off",
    )  # as older readers of YAML take them
    return text if plain else json.dumps(text, ensure_ascii=False)
