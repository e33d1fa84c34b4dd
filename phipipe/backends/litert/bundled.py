"""The model inside a LiteRT-LM bundle, read where it lies."""

from __future__ import annotations

import contextlib
import io
import mmap
from collections.abc import Iterator
from pathlib import Path

from litert_lm_builder import litertlm_header_schema_py_generated as schema
from litert_lm_builder import litertlm_peek

from phipipe.errors import StepFailed


@contextlib.contextmanager
def bundled(path: Path) -> Iterator[memoryview]:
    """The ``.tflite`` inside a LiteRT-LM bundle, as a view of the mapped file; valid within the
    context."""
    begin, end = _section(path)
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as whole,
        whole[begin:end] as view,
    ):
        yield view


def _section(path: Path) -> tuple[int, int]:
    """First and last byte (exclusive) of the model in a bundle."""
    try:
        header = litertlm_peek.read_litertlm_header(str(path), io.StringIO())
    except ValueError:
        raise StepFailed(f"`{path.name}` is not a LiteRT-LM bundle") from None
    sections = header.SectionMetadata()
    for section in (sections.Objects(i) for i in range(sections.ObjectsLength())):
        if section.DataType() == schema.AnySectionDataType.TFLiteModel:
            return section.BeginOffset(), section.EndOffset()
    raise StepFailed(f"`{path.name}` holds no model")
