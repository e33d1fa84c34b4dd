"""The builder of LiteRT-LM bundles without what would differ from build to build."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from importlib import metadata
from unittest.mock import patch

from litert_lm_builder import litertlm_builder as builder

from phipipe.errors import StepFailed

KNOWN = "0.18."  # the versions of litert-lm-builder that are known from within
EPOCH = "1970-01-01T00:00:00+00:00"


@contextlib.contextmanager
def fixed_identity(identity: uuid.UUID) -> Iterator[None]:
    """Have the builder write ``identity``, by which runtimes key their caches, and a fixed time, in
    place of chance and the time of day.

    Raises:
        StepFailed: this is another version of litert-lm-builder.
    """
    version = metadata.version("litert-lm-builder")
    if not version.startswith(KNOWN):
        raise StepFailed(f"litert-lm-builder is {version}, and not {KNOWN}x")
    fixed = {"Authors": "phipipe", "uuid": str(identity), "creation_timestamp": EPOCH}
    entries = [
        builder.Metadata(key=key, value=value, dtype=builder.DType.STRING)
        for key, value in fixed.items()
    ]
    with patch.object(builder, "populate_system_metadata", lambda _: entries):
        yield
