"""A GGUF written from front to back while its next rows are read and rounded on all cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from phipipe import hardware, progress
from phipipe.backends.llamacpp import header
from phipipe.backends.llamacpp.ggml import Raw
from phipipe.backends.llamacpp.header import Settings, row_bytes
from phipipe.backends.llamacpp.rows import nothing
from phipipe.backends.llamacpp.stored import Tensor

PART = 2**20  # weights that a thread works on at a time

Make = Callable[[int, int], Raw]


class Filling(NamedTuple):
    """A tensor of the file to be, and what makes its rows ``start`` to ``end``, uint8 [end − start,
    bytes of a row]; from any thread. ``announce`` says that they are needed soon."""

    tensor: Tensor
    rows: int
    make: Make
    announce: Callable[[], None] = nothing

    @property
    def size_bytes(self) -> int:
        return self.rows * row_bytes(self.tensor.type, self.tensor.shape[0])

    def parts(self) -> Iterator[tuple[int, int]]:
        """First row and end of what is made at a time."""
        step = max(1, PART // self.tensor.shape[0])
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


def write(
    target: Path, settings: Settings, fillings: Sequence[Filling], *, told: bool = True
) -> None:
    """A GGUF at ``target``: ``settings``, then ``fillings`` in their order; ``told``: as progress.

    Threads make parts ahead of the one that is written, two for each core, so memory is bounded
    whatever the model's size. Meanwhile the system reads the next tensor. All cores are asked for,
    also beside other steps: these end before, and the rest would be rounded by a share of them.
    """
    sizes = [one.size_bytes for one in fillings]
    with ThreadPoolExecutor(hardware.cores()) as pool, target.open("wb") as file:
        file.write(header.start(settings, [one.tensor for one in fillings], sizes))
        for number, last, raw in _ahead(pool, fillings):
            file.write(raw.data)
            if last:
                file.write(bytes(header.padded(sizes[number]) - sizes[number]))
            if last and told:
                progress.report(number + 1, len(fillings), "tensors")


def _announced(fillings: Sequence[Filling]) -> Iterator[tuple[int, Filling]]:
    """Each with its number, while the system is told of the one after it."""
    for number, one in enumerate(fillings):
        for later in fillings[number + 1 : number + 2]:
            later.announce()
        yield number, one


def _ahead(
    pool: ThreadPoolExecutor, fillings: Sequence[Filling]
) -> Iterator[tuple[int, bool, Raw]]:
    """Each part in order: the number of its tensor, whether it is that one's last, its bytes."""
    parts = (
        (number, end == one.rows, pool.submit(one.make, start, end))
        for number, one in _announced(fillings)
        for start, end in one.parts()
    )
    waiting: deque[tuple[int, bool, Future[Raw]]] = deque(islice(parts, 2 * hardware.cores() + 1))
    while waiting:
        number, last, made = waiting.popleft()
        raw = made.result()
        waiting.extend(islice(parts, 1))
        yield number, last, raw
