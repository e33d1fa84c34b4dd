"""A bucket in S3, GCS or Azure, or a shared folder: single requests, by obstore."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import obstore.store
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    NotFoundError,
    PreconditionError,
)

REQUEST_S, CONNECT_S, RETRIES = 60, 10, 3
PART_BYTES = 16 * 2**20  # of a long upload; S3 takes 10,000 parts
COPY_BYTES = 5 * 2**30  # S3 copies no longer object at once
GONE = (NotFoundError, FileNotFoundError)
THERE = (AlreadyExistsError, PreconditionError, FileExistsError)


@dataclass(frozen=True)
class About:
    """What a store says of an object: ``size`` in bytes; ``attributes`` are what it was written
    with."""

    size: int
    attributes: Mapping[str, str]


class Bucket:
    """The objects at ``url``. Credentials come from the environment, as each provider's own tools
    read them. Methods may be called from several threads.

    Raises:
        Exception: many kinds, for an address that obstore cannot use.
    """

    FAILURES = (BaseError, OSError)  # what methods raise where it does not do what it is asked

    def __init__(self, url: str, *, hashed: bool = False) -> None:
        """With ``hashed`` an S3 server is told each upload's SHA-256, and refuses other bytes."""
        self._there = _open(url, hashed)

    def get(self, name: str) -> bytes | None:
        """The object ``name``; None if there is none."""
        try:
            return bytes(obstore.get(self._there, name).bytes())
        except GONE:
            return None

    def range(self, name: str, start: int, end: int) -> bytes | None:
        """Bytes ``start`` to ``end`` of an object, fewer where it ends before; None if there is
        none."""
        try:
            return bytes(obstore.get_range(self._there, name, start=start, end=end))
        except GONE:
            return None
        except GenericError:
            # a range beyond the end is an error of its own with every provider
            if self.size(name) < end:
                return b""
            raise

    def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Whether it is written; without ``replace`` it is not where there is one."""
        try:
            obstore.put(self._there, name, content, mode="overwrite" if replace else "create")
        except THERE:
            return False
        return True

    def size(self, name: str) -> int:
        """In bytes; -1 if it is not there."""
        try:
            return int(obstore.head(self._there, name)["size"])
        except GONE:
            return -1

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(*GONE):
            obstore.delete(self._there, name)

    def about(self, name: str) -> About | None:
        """Size and attributes of an object; None if it is not there."""
        try:
            found = obstore.get(self._there, name, options={"head": True})
        except GONE:
            return None
        given = {str(key): str(value) for key, value in found.attributes.items()}
        return About(int(found.meta["size"]), given)

    def upload(self, name: str, path: Path, attributes: Mapping[str, str]) -> None:
        """The file ``path`` as an object, in parts where it is long: it appears as a whole, in
        place of what was there."""
        given: Any = dict(attributes)  # its type knows the usual ones alone
        obstore.put(self._there, name, path, attributes=given, chunk_size=PART_BYTES)

    def stream(self, name: str, start: int) -> Iterator[bytes]:
        """The content of an object from the byte ``start`` on, which it must have.

        Raises:
            FAILURES: it is not there, or the connection broke.
        """
        whole = obstore.get(self._there, name, options={"range": {"offset": start}})
        for chunk in whole.stream(min_chunk_size=2**20):
            yield bytes(chunk)

    def copy(self, name: str, to: str) -> None:
        """An object's content and attributes as the object ``to``, within the store; at most
        ``COPY_BYTES``."""
        obstore.copy(self._there, name, to)

    def names(self, prefix: str | None = None, limit: int = 1000) -> list[str]:
        """Names of objects, those in the folder ``prefix``; about ``limit`` at most."""
        found: list[str] = []
        for batch in obstore.list(self._there, prefix):
            found += [str(one["path"]) for one in batch]
            if len(found) >= limit:
                break
        return found


def remote_failure(error: Exception) -> bool:
    """Whether the other side raised ``error``, or the way to it, rather than this machine's own
    files."""
    return isinstance(error, BaseError) or getattr(error, "errno", None) is None


def lacks_credentials(error: Exception) -> bool:
    """Whether obstore found nobody to sign S3 requests as: half a key, or none. Without one it asks
    the machine's own metadata service for a role, and fails with that address."""
    text = str(error)
    asked = ("/latest/api/token", "/latest/meta-data/iam", "MissingSecretAccessKey")
    return any(part in text for part in (*asked, "MissingAccessKeyId"))


def missing_credentials() -> str:
    """Which variables are not set, for users."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    absent = [name for name in names if not os.environ.get(name)] or [*names]
    verb = "is" if len(absent) == 1 else "are"
    role = ", and this machine has no role" if len(absent) > 1 else ""
    return f"no credentials: {' and '.join(absent)} {verb} not set{role}"


def nobody_there(error: Exception) -> str:
    """The URL that nothing answered at, as obstore's ``error`` has it; empty where it is another
    failure."""
    found = re.search(r"Error performing [A-Z]+ (https?://[^/\s]+)", str(error))
    is_so = any(cause in str(error) for cause in ("tcp connect error", "dns error"))
    return found[1] if found and is_so else ""


def is_known(error: Exception) -> bool:
    """Whether the name of the host that could not be reached leads anywhere."""
    return "dns error" not in str(error)


def _open(url: str, hashed: bool) -> Any:
    """obstore's store for ``url``."""
    if url.startswith("file://"):
        return obstore.store.LocalStore.from_url(url, mkdir=True)
    options: dict[str, Any] = {
        "timeout": timedelta(seconds=REQUEST_S),
        "connect_timeout": timedelta(seconds=CONNECT_S),
    }
    variables = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
    endpoint = next(filter(None, (os.environ.get(name, "") for name in variables)), "")
    if endpoint.startswith("http://"):
        options["allow_http"] = True
    retry = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=2 * REQUEST_S)}
    more = {"endpoint": endpoint} if endpoint and url.startswith("s3://") else {}
    if hashed and url.startswith("s3://"):
        more["checksum_algorithm"] = "SHA256"
    # its overloads are by provider, ours are all of them
    from_url: Callable[..., Any] = obstore.store.from_url
    return from_url(url, client_options=options, retry_config=retry, **more)
