"""The two files of an OpenVINO graph, edited where they lie: the XML as text, the weights tensor by
tensor."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import torch

_CHUNK_BYTES = 2**25
_CONSTANT = re.compile(r'<data element_type="bf16"[^>]*? offset="(\d+)" size="(\d+)"')


def number_nodes(path: Path) -> None:
    """Give automatic names ("Constant_25028") the order in which they appear, and the graph a name
    without a count."""
    order: dict[str, str] = {}

    def renamed(name: re.Match[str]) -> str:
        return order.setdefault(name[0], f"{name[1]}_{len(order)}")

    def attribute(text: re.Match[str]) -> str:
        return re.sub(r"(?<![^\",])([A-Z][A-Za-z0-9]*)_\d+(?=[\",._])", renamed, text[0])

    text = re.sub(r'<net name="Model\d+"', '<net name="Model"', path.read_text("utf-8"), count=1)
    text = re.sub(r'(?<= )(?:name|names|output_names)="[^"]*"', attribute, text)
    path.write_text(text, "utf-8", newline="\n")


def to_fp16(path: Path) -> None:
    """Round the bf16 constants of the graph ``path`` to fp16, in place: both take two bytes, so
    that nothing moves.

    Magnitudes from 2^-17 to 65,504 are exact, smaller ones off by at most 2^-25, larger ones become
    infinite: as they do when a model is loaded in fp16.
    """
    text = path.read_text("utf-8")
    places = {
        (int(match[1]), int(match[2])) for match in _CONSTANT.finditer(text)
    }  # equal constants share a place
    with path.with_suffix(".bin").open("r+b") as stream:
        for offset, size in sorted(places):
            for start in range(offset, offset + size, _CHUNK_BYTES):
                stream.seek(start)
                raw = bytearray(stream.read(min(_CHUNK_BYTES, offset + size - start)))
                halves = torch.frombuffer(raw, dtype=torch.bfloat16).to(torch.float16)
                stream.seek(start)
                stream.write(halves.numpy().data)
    text = text.replace('element_type="bf16"', 'element_type="f16"').replace(
        'precision="BF16"', 'precision="FP16"'
    )
    path.write_text(text, "utf-8", newline="\n")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute in one thread: in a trace of tiny operations, a second one doubles the
    time by waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
