"""What refers to an artifact in an OCI registry: provenance and signatures of a package.

Registries keep a list of it. Older ones do not: there it is found through a tag that the OCI's
specification has for that (``sha256-HEX``), an index which we write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from phipipe.errors import SourceError
from phipipe.hub.published import Published
from phipipe.publishing import modelpack
from phipipe.publishing.modelpack import Blob
from phipipe.publishing.registry_store import RegistryStore
from phipipe.publishing.sealed import Item
from phipipe.steps import Json


class Referrers:
    """Of artifacts in ``store``."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    def attach(self, items: Sequence[Item], whole: Blob) -> None:
        """Have ``items`` refer to the model, in place of what did before."""
        subject, made = whole.descriptor(modelpack.MANIFEST), []
        is_listed = True
        for item in items:
            self._store.upload_blob(Blob(modelpack.NOTHING), "nothing")
            self._store.upload_item(item)
            one = modelpack.referrer(item, subject)
            answer = self._store.put(one.digest, one, modelpack.MANIFEST)
            is_listed = is_listed and "oci-subject" in answer.headers
            made.append(one.descriptor(modelpack.MANIFEST) | modelpack.kind_of(item.path))
        if made:
            self._forget_older(made, whole.digest, is_listed)

    def _forget_older(
        self, made: Sequence[Mapping[str, Json]], subject: str, is_listed: bool
    ) -> None:
        """Take what was attached before out of the list of what refers to ``subject``."""
        kinds = {entry["artifactType"] for entry in made}
        new = {entry["digest"] for entry in made}
        rows = self._entries(subject, is_listed)
        older = [
            row
            for row in rows
            if str(row.get("artifactType")) in kinds and str(row.get("digest")) not in new
        ]
        if not is_listed:
            kept = [row for row in rows if str(row.get("artifactType")) not in kinds]
            self._store.put(_fallback(subject), modelpack.index([*kept, *made]), modelpack.INDEX)
            return
        for row in older:
            answer = self._store.http.ask(
                "DELETE",
                f"manifests/{row.get('digest')}",
                f"cannot remove what was attached to `{self._store.address}` before",
                expected=(200, 202, 400, 401, 403, 404, 405),
            )
            if answer.status not in (200, 202, 404):
                raise SourceError(
                    f"`{self._store.address}` keeps what was attached to it before: the registry "
                    f"lets nobody remove it",
                    hint=f"remove the manifest {row.get('digest')} there",
                )

    def attached(self, subject: str) -> Iterator[tuple[str, Published]]:
        """(name, file) of what is attached to the artifact with the digest ``subject``."""
        for entry in self._entries(subject, None):
            digest = entry.get("digest")
            raw = self._store.manifest(str(digest)) if modelpack.is_digest(digest) else None
            found = modelpack.parsed(raw or b"")
            for file in modelpack.layers(found):
                if found.get("artifactType") == modelpack.kind_of(file.name).get("artifactType"):
                    yield file.name, file

    def _entries(self, subject: str, is_listed: bool | None) -> list[Mapping[str, Json]]:
        """Descriptors of what refers to ``subject``; None: whether the registry keeps a list is to
        be found out."""
        raw: bytes | None = None
        if is_listed is not False:
            answer = self._store.http.ask(
                "GET",
                f"referrers/{subject}",
                f"cannot ask `{self._store.address.host}` what refers to `{self._store.address}`",
                headers={"Accept": modelpack.INDEX},
                expected=(200, 400, 404, 405),
            )
            is_listed, raw = answer.status == 200, answer.body
        rows = modelpack.parsed(raw if is_listed else self._store.manifest(_fallback(subject)))
        found = rows.get("manifests")
        return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _fallback(digest: str) -> str:
    return digest.replace(":", "-")
