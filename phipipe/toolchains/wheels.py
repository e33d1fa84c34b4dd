"""The package of a toolchain that is compiled here, as a wheel that others need not compile again.

A wheel is packed from the files of an environment, the same bytes each time. In the remote store it
lies under a name of all that it depends on: the locked version, the system, Python, and the
processor's features. Who takes one checks its SHA-256; yet it is code that runs, so it is taken
only by who asks for it.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.errors import StoreError, ToolchainError
from phipipe.processes import launcher
from phipipe.settings import Settings
from phipipe.store import keys
from phipipe.store.shared import describe, open_bucket
from phipipe.toolchains import compiling, environments, processor
from phipipe.toolchains.contents import find_missing, site_of
from phipipe.toolchains.installation import Installation

if TYPE_CHECKING:
    from phipipe.store.bucket import Bucket

# what an installer adds to a wheel's own files
ADDED = ("INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json", "RECORD")
MADE = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file knows


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel's file, with the SHA-256 of its content; ``shared`` if it lies in the remote
    store."""

    path: Path
    sha256: str
    size_bytes: int
    native: bool
    shared: bool = False


def requirement(name: str) -> str:
    """What of toolchain ``name`` is compiled, such as `llama-cpp-python==0.3.36`.

    Raises:
        ToolchainError: nothing of it is, or there is no such toolchain.
    """
    environments.lock_of(name)
    if name not in compiling.COMPILED:
        raise ToolchainError(
            f"nothing of toolchain `{name}` is compiled here: its index has wheels",
            hint=f"phipipe toolchain build {' or '.join(compiling.COMPILED)}",
        )
    package = compiling.COMPILED[name]
    lines = environments.lock_of(name).read_text("utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def build(
    name: str,
    settings: Settings,
    notify: Callable[[str], None],
    *,
    out: Path,
    native: bool = False,
    stop: launcher.Stop = lambda: False,
) -> Wheel:
    """Compile the package of toolchain ``name`` and write its wheel into the folder ``out``.

    Args:
        native: for the features of this very processor, which is faster on it and crashes on
            lesser ones.

    Raises:
        ToolchainError: nothing of the toolchain is compiled, or it cannot be.
        StoreError: there is no room.
        Interrupted: ``stop`` said so.
    """
    wanted = requirement(name)
    environments.refuse_foreign(name)
    settings.toolchains.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=settings.toolchains) as folder:
        lock = Path(folder) / "lock.txt"
        lock.write_text(f"{wanted}\n", "utf-8")
        package = compiling.COMPILED[name]
        words = ["--no-deps", "--no-binary", package]
        if not native:
            words += ["--config-settings-package", f"{package}:{compiling.PORTABLE}"]
        installation = Installation(
            name=name,
            lock=lock,
            path=Path(folder) / "environment",
            notify=notify,
            stop=stop,
            more=tuple(words),
        )
        installation.install(settings)
        return replace(pack(installation.path, package, out), native=native)


def pack(environment: Path, package: str, out: Path) -> Wheel:
    """Write the wheel of ``package``, as it is installed in ``environment``, into the folder
    ``out``. The same files make the same bytes.

    Raises:
        ToolchainError: it is not there as it was installed, or has files outside of its folder.
        OSError: the folder cannot be written.
    """
    site = site_of(environment)
    stem = package.replace("-", "_")
    about = next(iter(site.glob(f"{stem}-*.dist-info")), None)
    if about is None or find_missing(environment):
        raise ToolchainError(f"`{package}` is not installed as it should be")
    names = sorted(name for name, *_ in _rows(about / "RECORD") if _is_own(name, about.name))
    if outside := [name for name in names if name.startswith(("..", "/"))]:
        raise ToolchainError(f"`{package}` cannot be packed: it has the file `{outside[0]}`")
    target = out / f"{about.name.removesuffix('.dist-info')}-{_tag(about)}.whl"
    out.mkdir(parents=True, exist_ok=True)
    whole = _zipped(site, names, f"{about.name}/RECORD")
    aside = target.with_suffix(".tmp")
    aside.write_bytes(whole)
    aside.replace(target)
    digest = hashlib.sha256(whole).hexdigest()
    return Wheel(path=target, sha256=digest, size_bytes=len(whole), native=True)


def _rows(record: Path) -> Iterator[list[str]]:
    with record.open(encoding="utf-8", newline="") as stream:
        yield from csv.reader(stream)


def _is_own(name: str, about: str) -> bool:
    """Whether a file was in the wheel, and not added by whoever installed it."""
    is_added = name in {f"{about}/{added}" for added in ADDED}
    return not is_added and not name.endswith((".pyc", "__pycache__/"))


def _tag(about: Path) -> str:
    """The tag that the wheel had, such as `py3-none-linux_x86_64`."""
    lines = (about / "WHEEL").read_text("utf-8").splitlines()
    return next(line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: "))


def _zipped(site: Path, names: list[str], record: str) -> bytes:
    rows, whole = io.StringIO(), io.BytesIO()
    writer = csv.writer(rows, lineterminator="\n")
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            content = (site / name).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            writer.writerow((name, f"sha256={digest.decode('ascii')}", len(content)))
            archive.writestr(_entry(name), content)
        writer.writerow((record, "", ""))
        archive.writestr(_entry(record), rows.getvalue())
    return whole.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, MADE)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return entry


# --- through the remote store


def check_sharing(name: str, settings: Settings, *, native: bool) -> None:
    """Refuse at once what ``share`` would refuse after minutes of compiling.

    Raises:
        ToolchainError: as ``share``.
    """
    _bucket(settings)
    _place(name, native=native)


def share(name: str, wheel: Wheel, settings: Settings) -> Wheel:
    """Lay ``wheel`` into the remote store, for machines like this one; a portable one for all of
    its system.

    Raises:
        ToolchainError: there is no remote store, it takes nothing, or this system does not tell its
            processor's features.
    """
    bucket = _bucket(settings)
    place = _place(name, native=wheel.native)
    told = {"file": wheel.path.name, "sha256": wheel.sha256, "size": wheel.size_bytes}
    try:
        bucket.put(f"{place}.whl", wheel.path.read_bytes(), replace=True)
        bucket.put(f"{place}.json", keys.seal_record(told), replace=True)
    except bucket.FAILURES as error:
        raise ToolchainError(
            f"the shared store {settings.remote} does not take the wheel ({describe(error)})",
            hint="check its address and your rights there",
        ) from None
    return replace(wheel, shared=True)


@contextlib.contextmanager
def shared(name: str, settings: Settings, notify: Callable[[str], None]) -> Iterator[Path | None]:
    """A folder with the wheel that somebody has shared for machines like this one, as long as the
    block lasts; None if there is none, or a damaged one.

    Raises:
        ToolchainError: there is no remote store, or it does not answer.
    """
    folder = Path(tempfile.mkdtemp(prefix="phipipe-wheel-"))
    try:
        taken = _take(name, settings, folder, notify)
        if not taken:
            notify(f"no shared wheel for toolchain `{name}` suits this machine")
        yield folder if taken else None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take(name: str, settings: Settings, folder: Path, notify: Callable[[str], None]) -> bool:
    bucket = _bucket(settings)
    for native in (True, False):
        if not processor.can_run(native=native):
            continue
        place = _place(name, native=native)
        try:
            raw, content = bucket.get(f"{place}.json"), bucket.get(f"{place}.whl")
        except bucket.FAILURES as error:
            raise ToolchainError(
                f"the shared store {settings.remote} does not answer ({describe(error)})",
                hint=f"phipipe toolchain install {name}",
            ) from None
        if raw is None or content is None:
            continue
        if file := _right(raw, content):
            (folder / file).write_bytes(content)
            notify(f"taking the shared wheel `{file}`")
            return True
        notify("a shared wheel is damaged and was not taken")
    return False


def _right(raw: bytes, content: bytes) -> str | None:
    """The file name of the wheel ``content``, if it is what the record ``raw`` tells."""
    try:
        told = keys.open_sealed(raw)
    except StoreError:
        return None
    file = str(told.get("file"))
    is_named = file.endswith(".whl") and Path(file).name == file
    return file if is_named and hashlib.sha256(content).hexdigest() == told["sha256"] else None


def _place(name: str, *, native: bool) -> str:
    """Where in the remote store a wheel lies that this machine can run."""
    return (
        f"wheels/{keys.key_of(processor.machine(native=native) | {'package': requirement(name)})}"
    )


def _bucket(settings: Settings) -> Bucket:
    if settings.remote is None:
        raise ToolchainError(
            "there is no remote store to share wheels through",
            hint="set PHIPIPE_REMOTE, such as s3://BUCKET/PREFIX or file:///FOLDER",
        )
    return open_bucket(settings.remote)
