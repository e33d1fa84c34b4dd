"""A bucket in S3, GCS or Azure, or a shared folder: single requests, by obstore."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import timedelta
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
GONE = (NotFoundError, FileNotFoundError)
THERE = (AlreadyExistsError, PreconditionError, FileExistsError)


class Bucket:
    """The objects at ``url``. Credentials come from the environment, as each provider's own tools
    read them. Methods may be called from several threads.

    Raises:
        Exception: many kinds, for an address that obstore cannot use.
    """

    FAILURES = (BaseError, OSError)  # what methods raise where it does not do what it is asked

    def __init__(self, url: str) -> None:
        self._there = _open(url)

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


def _open(url: str) -> Any:
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
    # its overloads are by provider, ours are all of them
    from_url: Callable[..., Any] = obstore.store.from_url
    return from_url(url, client_options=options, retry_config=retry, **more)
