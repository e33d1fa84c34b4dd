"""A package in an OCI registry: blobs by their hashes first, the tag last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.evaluate import papers
from phipipe.files import json_files
from phipipe.hub import transfer
from phipipe.hub.published import Published
from phipipe.publishing import modelpack
from phipipe.publishing.modelpack import Blob
from phipipe.publishing.place import OnBytes, Seen
from phipipe.publishing.referrers import Referrers
from phipipe.publishing.registry_http import Expired
from phipipe.publishing.registry_store import RegistryStore
from phipipe.publishing.sealed import Item, Sealed, described, entries_of
from phipipe.recipe.addresses import RegistryAddress


class RegistryPlace:
    """The tag at ``address``."""

    def __init__(
        self, address: RegistryAddress, note: Callable[[str], None] = lambda line: None
    ) -> None:
        """Nothing is asked yet; ``note`` hears of waits."""
        self.address = address
        self._store = RegistryStore(address, note)
        self._referrers = Referrers(self._store)
        self._seen = Seen()
        self._tagged: bytes | None = None  # the manifest that the tag leads to
        self._layers: dict[str, Published] = {}
        self._attached: dict[str, Published] = {}

    def close(self) -> None:
        """As ``Place.close``."""
        self._store.http.close()

    def look(self) -> Seen:
        """As ``Place.look``."""
        self._seen, self._layers, self._attached = Seen(), {}, {}
        self._tagged = self._store.manifest(self.address.tag)
        if self._tagged is None:
            return self._seen
        found = modelpack.parsed(self._tagged)
        if found.get("artifactType") != modelpack.MODEL:
            kind = found.get("artifactType") or found.get("mediaType") or "something"
            self._seen = Seen(foreign=(json_files.shown(f"{kind} at {self.address.tag}"),))
            return self._seen
        self._layers = {file.name: file for file in modelpack.layers(found)}
        own = self._layers.get(papers.MANIFEST)
        raw = self._store.short(own) if own is not None else None
        inner = described(raw) if raw is not None else None
        if raw is None or inner is None:
            self._seen = Seen(foreign=(f"a model of others at {self.address.tag}",))
            return self._seen
        self._seen = Seen(raw, str(inner["digest"]))
        self._attached = dict(self._referrers.attached(Blob(self._tagged).digest))
        return self._seen

    def missing(self, package: Sealed) -> tuple[Item, ...]:
        """As ``Place.missing``."""
        return tuple(item for item in package.items if not self._has(item))

    def _has(self, item: Item) -> bool:
        there = {**self._layers, **self._attached}.get(item.path)
        if there is not None and there.digest == item.sha256:
            return True
        # a signature's blob is of no use to anybody without what refers to the model
        return item.path not in papers.ATTACHED and self._store.is_kept(item.sha256)

    def prepare(self) -> None:
        """As ``Place.prepare``: the registry itself says who may write."""

    def send(self, package: Sealed, missing: Sequence[Item], on_bytes: OnBytes) -> None:
        """As ``Place.send``."""
        sent = 0
        for item in missing:
            self._store.upload_item(item)
            sent += item.size
            on_bytes(sent)
        about = modelpack.config(package)
        whole = modelpack.manifest(package, about)
        if self._seen.digest == package.digest and self._tagged is not None:
            whole = Blob(self._tagged)  # it is shown already
        else:
            self._store.upload_blob(about, "the configuration")
            self._store.put(whole.digest, whole, modelpack.MANIFEST)
        self._referrers.attach(package.attached, whole)
        if whole.content != self._tagged:
            if self._store.manifest(self.address.tag) != self._tagged:
                raise SourceError(
                    f"`{self.address}` changed while the package was sent: somebody else pushed",
                    hint="look at what is there, then push again",
                )
            self._store.put(self.address.tag, whole, modelpack.MANIFEST)
        if self._store.manifest(self.address.tag) != whole.content:
            raise SourceError(
                f"`{self.address}` does not show what was sent to it", hint="push again"
            )

    def tidy(self, package: Sealed) -> None:
        """As ``Place.tidy``: a tag leaves nothing undone."""

    def described(self) -> Mapping[str, Published]:
        """As ``Place.described``.

        Raises:
            SourceError: the artifact has more than the package.
        """
        inner = described(self._seen.manifest) if self._seen.manifest else None
        listed = {path for path, _ in entries_of(inner)} if inner else set()
        more = sorted(set(self._layers) - listed - {papers.MANIFEST})
        if more:
            raise SourceError(
                f"`{self.address}` holds `{json_files.shown(more[0])}`, which the package does "
                f"not list"
            )
        return {**self._layers, **self._attached}

    def fetch(self, files: Sequence[Published], folder: Path, on_bytes: OnBytes) -> None:
        """As ``Place.fetch``; a registry forgets within minutes whom it let in."""
        for _ in range(len(files) + 1):
            jobs = [
                (self._store.http.file(f"sha256:{file.digest}"), file, folder / file.name)
                for file in files
            ]
            try:
                transfer.fetch_all(jobs, on_bytes)
                return
            except Expired as expired:
                last = expired
                self._store.manifest(self.address.tag)  # it asks anew who we are
        raise last
