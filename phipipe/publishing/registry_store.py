"""Content in a repository of an OCI registry: blobs by their hashes, manifests by tag or digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.hub import exchange
from phipipe.hub.failures import OtherBytes, status_error
from phipipe.hub.published import CHUNK, Published
from phipipe.package.manifest import MAX_BYTES
from phipipe.publishing import modelpack
from phipipe.publishing.modelpack import Blob
from phipipe.publishing.registry_http import Answer, Content, Registry, Request
from phipipe.publishing.sealed import Item
from phipipe.recipe.addresses import RegistryAddress

ACCEPT = {"Accept": f"{modelpack.MANIFEST}, {modelpack.INDEX}"}


class RegistryStore:
    """The repository of ``address``. Every method raises a SourceError where the registry refuses,
    does not answer, or gives other bytes than it says."""

    def __init__(
        self, address: RegistryAddress, note: Callable[[str], None] = lambda line: None
    ) -> None:
        """``note`` hears of waits."""
        self.address = address
        self.http = Registry(address, note)

    def manifest(self, reference: str) -> bytes | None:
        """The manifest that ``reference``, a tag or a digest, leads to; None if there is none.

        Raises:
            OtherBytes: the registry says another digest of it than it has.
        """
        answer = self.http.ask(
            "GET",
            f"manifests/{reference}",
            f"cannot ask `{self.address.host}` about `{self.address.repository}`",
            headers=ACCEPT,
        )
        if answer.status == 404:
            return None
        digest = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
        said = answer.headers.get("docker-content-digest") or digest
        if said != digest or (reference.startswith("sha256:") and reference != digest):
            raise OtherBytes(
                f"`{self.address.host}` contradicts itself: the manifest of `{reference}` has "
                f"another digest than it says"
            )
        return answer.body

    def short(self, file: Published) -> bytes | None:
        """A short blob's content; None where it is longer than any manifest."""
        if file.size > MAX_BYTES:
            return None
        body = self.http.patiently(lambda: self._content(file), f"cannot read `{self.address}`")
        if hashlib.sha256(body).hexdigest() != file.digest:
            raise OtherBytes(f"`{file.name}` at `{self.address}` is not what was published")
        return body

    def _content(self, file: Published) -> bytes:
        """A blob's content, or more than it where the registry gives more."""
        address, body = self.http.file(f"sha256:{file.digest}"), b""
        with exchange.opened(self.http.pool, address, None) as response:
            status, headers = response.status_code, response.headers
            if status != 200:
                raise status_error(status, headers, lambda: address.refuse(status, headers))
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > file.size:
                    break
        return body

    def is_kept(self, sha256: str) -> bool:
        answer = self.http.ask(
            "HEAD",
            f"blobs/sha256:{sha256}",
            f"cannot ask `{self.address.host}` what it has",
            # who is not let in is told when something is sent
            expected=(200, 404, 401, 403),
        )
        return answer.status == 200

    def upload_blob(self, blob: Blob, what: str) -> None:
        self._upload(blob.digest, len(blob.content), lambda: [blob.content], what)

    def upload_item(self, item: Item) -> None:
        self._upload(f"sha256:{item.sha256}", item.size, partial(_read, item.file), item.path)

    def _upload(self, digest: str, size: int, content: Content, what: str) -> None:
        """Bring content, unless the registry has it: nobody sees it by that."""
        if not self.is_kept(digest[7:]):
            in_vain = f"cannot send `{what}` to `{self.address.host}`"
            self.http.patiently(lambda: self._sent(digest, size, content, what), in_vain)

    def _sent(self, digest: str, size: int, content: Content, what: str) -> None:
        """Send content once, at a place that the registry makes for it.

        Raises:
            Fault: it may help to try again.
            SourceError: it refuses.
        """
        registry = self.http
        start = registry.once(Request("POST", registry.url("blobs/uploads/")), (202,))
        place = registry.redirected(start)
        url = f"{place}{'&' if '?' in place else '?'}digest={digest}"
        kind = {"Content-Type": "application/octet-stream"}
        answer = registry.once(Request("PUT", url, kind, content, size), (201,))
        if (answer.headers.get("docker-content-digest") or digest) != digest:
            raise SourceError(
                f"`{self.address.host}` keeps another content than it was sent, for `{what}`",
                hint="a proxy on the way may change what is sent; push again",
            )

    def put(self, reference: str, blob: Blob, media_type: str) -> Answer:
        return self.http.ask(
            "PUT",
            f"manifests/{reference}",
            f"cannot show the package at `{self.address}`",
            headers={"Content-Type": media_type},
            content=blob.content,
            expected=(201,),
        )


def _read(file: Path) -> Iterable[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk
