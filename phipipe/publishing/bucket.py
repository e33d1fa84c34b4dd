"""A package below a prefix of a bucket: each file is an object, ``manifest.json`` the last.

A bucket changes one object at once. So a package that takes another's place is brought aside, to
``PREFIX/.phipipe/DIGEST``; then the manifest is replaced, which is the moment when the address
shows the new one; then what lies aside is moved to its place. Who pulls meanwhile takes each file
from where its hash is right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from phipipe.errors import SourceError, ToolchainError
from phipipe.evaluate import papers
from phipipe.hub.failures import Fault, OtherBytes, patiently
from phipipe.hub.published import Part, Published
from phipipe.package.manifest import MAX_BYTES
from phipipe.publishing.bucket_failures import ATTEMPTS, meaning_of, unusable
from phipipe.publishing.place import OnBytes, Seen
from phipipe.publishing.sealed import Item, Sealed, described, entries_of
from phipipe.recipe.addresses import BucketAddress

if TYPE_CHECKING:
    from phipipe.store.bucket import About, Bucket

T = TypeVar("T")
ASIDE = ".phipipe"
HASH, PACKAGE = "phipipe-sha256", "phipipe-package"  # attributes of the objects that we write


@dataclass(frozen=True)
class _Found:
    """Where an object with a file's content is; ``size`` in bytes."""

    name: str
    size: int


class BucketPlace:
    """The objects at ``address``."""

    def __init__(self, address: BucketAddress) -> None:
        """Nothing is asked yet.

        Raises:
            ToolchainError: obstore is not installed.
            SourceError: the environment names no bucket that can be used.
        """
        self.address = address
        self._bucket = _opened(address)
        self._seen = Seen()
        self._places: dict[str, _Found] = {}

    def close(self) -> None:
        """As ``Place.close``: none is kept."""

    def look(self) -> Seen:
        """As ``Place.look``."""
        raw = self._asked(lambda bucket: _short(bucket, papers.MANIFEST))
        found = described(raw) if raw is not None else None
        if raw is not None and found is not None:
            self._seen = Seen(raw, str(found["digest"]))
        else:
            self._seen = Seen(foreign=tuple(self._foreign()))
        return self._seen

    def _foreign(self) -> Iterator[str]:
        """Objects that no push has written."""
        for name in sorted(self._asked(lambda bucket: bucket.names())):
            about = self._about(name)
            if about is not None and HASH not in about.attributes:
                yield name

    def _about(self, name: str) -> About | None:
        return self._asked(lambda bucket: bucket.about(name))

    def _find(self, path: str, sha256: str | None, package: str) -> _Found | None:
        """Where the content of ``path`` of the package is; without a hash (what is attached has
        none in the manifest) it is what was written for that package, or by another tool, which
        says nothing of packages: what is attached says itself what it is about."""
        for name in (path, f"{ASIDE}/{package}/{path}"):
            about = self._about(name)
            if about is None:
                continue
            given = about.attributes
            fits = (
                given.get(PACKAGE, package) == package
                if sha256 is None
                else given.get(HASH) == sha256
            )
            if fits:
                return _Found(name, about.size)
        return None

    def missing(self, package: Sealed) -> tuple[Item, ...]:
        """As ``Place.missing``; where the package is shown already, also what lies aside."""
        self._places = {}
        absent = []
        for item in package.items:
            found = self._find(item.path, item.sha256, package.digest)
            if found is not None and found.size == item.size:
                self._places[item.path] = found
            is_shown = self._seen.digest == package.digest
            if item.path not in self._places or (is_shown and self._is_aside(item)):
                absent.append(item)
        return tuple(absent)

    def _is_aside(self, item: Item) -> bool:
        return item.path in self._places and self._places[item.path].name != item.path

    def prepare(self) -> None:
        """As ``Place.prepare``: the bucket itself says who may write."""

    def send(self, package: Sealed, missing: Sequence[Item], on_bytes: OnBytes) -> None:
        """As ``Place.send``."""
        aside = self._seen.digest not in (None, package.digest)
        sent = 0
        for item in missing:
            if item.path != papers.MANIFEST and item.path not in self._places:
                name = f"{ASIDE}/{package.digest}/{item.path}" if aside else item.path
                self._upload(item, name, package)
                self._places[item.path] = _Found(name, item.size)
            sent += item.size
            on_bytes(sent)
        if aside and self._seen.manifest:
            old, name = self._seen.manifest, f"{ASIDE}/{package.digest}/{papers.MANIFEST}"
            self._asked(lambda bucket: bucket.put(name, old, replace=True))
        self._show(package)
        self._settle(package)

    def tidy(self, package: Sealed) -> None:
        """As ``Place.tidy``: what a replacement that broke left aside."""
        aside = f"{ASIDE}/{package.digest}"
        if self._asked(lambda bucket: bucket.names(aside)):
            self._settle(package)

    def _upload(self, item: Item, name: str, package: Sealed) -> None:
        attributes = {HASH: item.sha256, PACKAGE: package.digest}
        self._asked(lambda bucket: bucket.upload(name, item.file, attributes))
        about = self._about(name)
        if about is None or about.size != item.size or about.attributes.get(HASH) != item.sha256:
            raise SourceError(
                f"`{self.address}` does not keep what it was sent: `{item.path}` is another, or "
                f"missing",
                hint="push again; another program may write to the same prefix",
            )

    def _show(self, package: Sealed) -> None:
        """Make ``package`` what is at the address, if nobody else did something there."""
        now = self._asked(lambda bucket: _short(bucket, papers.MANIFEST))
        (item,) = (one for one in package.items if one.path == papers.MANIFEST)
        if now == item.file.read_bytes():
            return
        if now != self._seen.manifest and not self._seen.foreign:
            raise SourceError(
                f"`{self.address}` changed while the package was sent: somebody else pushed there",
                hint="look at what is there, then push again",
            )
        self._upload(item, item.path, package)

    def _settle(self, package: Sealed) -> None:
        """Move what lies aside to its place, and remove what the package before had."""
        from phipipe.store.bucket import COPY_BYTES

        for item in package.items:
            if self._is_aside(item):
                aside = self._places[item.path].name
                if item.size <= COPY_BYTES:
                    self._copy(aside, item.path)
                else:
                    self._upload(item, item.path, package)
        last = f"{ASIDE}/{package.digest}/{papers.MANIFEST}"  # the manifest before, kept to the end
        raw = self._asked(lambda bucket: _short(bucket, last))
        old = described(raw) if raw is not None else None
        if old is not None:
            gone = {path for path, _ in entries_of(old)} | {*papers.ATTACHED}
            for name in sorted(gone - {item.path for item in package.items}):
                self._delete(name)
        for name in self._asked(lambda bucket: bucket.names(ASIDE)):
            if name != last:
                self._delete(name)
        if raw is not None:
            self._delete(last)

    def _copy(self, name: str, to: str) -> None:
        self._asked(lambda bucket: bucket.copy(name, to))

    def _delete(self, name: str) -> None:
        self._asked(lambda bucket: bucket.delete(name))

    def described(self) -> Mapping[str, Published]:
        """As ``Place.described``: a bucket vouches for sizes, and repeats the hashes that it was
        given."""
        seen = described(self._seen.manifest) if self._seen.manifest else None
        if seen is None or self._seen.digest is None:
            return {}
        told = {}
        wanted: list[tuple[str, str | None]] = [*entries_of(seen)]
        for path, sha256 in [*wanted, *((name, None) for name in papers.ATTACHED)]:
            found = self._find(path, sha256, self._seen.digest)
            about = self._about(found.name if found else path) if sha256 or found else None
            if about is not None:
                self._places[path] = found or _Found(path, about.size)
                hashed = about.attributes.get(HASH, sha256 or "")
                told[path] = Published(path, about.size, "sha256", hashed)
        return told

    def fetch(self, files: Sequence[Published], folder: Path, on_bytes: OnBytes) -> None:
        """As ``Place.fetch``."""
        done = 0
        for file in files:
            before = done
            part = Part(folder / file.name, file)
            with contextlib.closing(part):
                self._complete(part, partial(_after, on_bytes, before))
            done += file.size
            if file.digest and part.hash.hexdigest() != file.digest:
                (folder / file.name).unlink()
                raise OtherBytes(
                    f"`{file.name}` at `{self.address}` is not what was published: it has another "
                    f"SHA-256",
                    hint="whoever published it can push it again",
                )

    def _complete(self, part: Part, on_bytes: OnBytes) -> None:
        name = self._places[part.file.name].name

        def rest(bucket: Bucket) -> None:
            if part.position < part.file.size:
                for chunk in bucket.stream(name, part.position):
                    part.write(chunk[: part.file.size - part.position])
                    on_bytes(part.position)
            if part.position < part.file.size:
                raise Fault(f"`{name}` ends after {part.position} bytes", attempts=ATTEMPTS)

        self._asked(rest, lambda: part.position)

    def _asked(self, ask: Callable[[Bucket], T], position: Callable[[], int] = lambda: 0) -> T:
        """What the bucket answers, asked again where it may help.

        Raises:
            SourceError: it refuses, or fails too often.
        """
        from phipipe.store.bucket import remote_failure

        def once() -> T:
            try:
                return ask(self._bucket)
            except self._bucket.FAILURES as error:
                if not remote_failure(error):
                    raise  # of this machine's disk
                raise meaning_of(error, self.address) from None

        return patiently(once, f"cannot use `{self.address}`", position)


def _after(on_bytes: OnBytes, before: int, there: int) -> None:
    on_bytes(before + there)


def _short(bucket: Bucket, name: str) -> bytes | None:
    """The content of an object that is no longer than a manifest may be; of a longer one its
    beginning, which is no manifest; None if there is none."""
    about = bucket.about(name)
    return None if about is None else bucket.range(name, 0, min(about.size, MAX_BYTES + 1))


def _opened(address: BucketAddress) -> Bucket:
    try:
        from phipipe.store.bucket import Bucket
    except ImportError:
        raise ToolchainError(
            "s3:// addresses need obstore, which is not installed",
            hint="pip install 'phipipe[remote]'",
        ) from None
    try:
        return Bucket(str(address), hashed=True)
    except Exception as error:  # noqa: BLE001 (obstore raises many kinds)
        raise unusable(error, address) from None
