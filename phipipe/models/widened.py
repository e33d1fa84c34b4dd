"""The decoder layers of a model in fp32, one after another: the next is read and widened while one
computes with the last that was asked for.

Steps that go through the same layers side by side (``processes.company``) share what is read: one
of them widens a layer into memory that all have mapped. At most two layers are in it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import torch

from phipipe.processes.company import Company

ALIGNED = 16  # values; as far as memory that torch makes itself
# Values that are copied at a time: of more, torch would have all cores at it, which compute.
PIECE = 2**14
CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]


class Widened:
    """``layers``, whose weights are as the files have them. ``rounded``: a dtype of 16 bits that
    they are rounded to. ``company``: who goes through them, too; on the CPU, weights are shared.
    ``unit``: where they are computed with."""

    def __init__(
        self,
        layers: Sequence[torch.nn.Module],
        rounded: torch.dtype | None,
        company: Company | None,
        unit: torch.device = CPU,
    ) -> None:
        self._layers, self._rounded, self._unit = layers, rounded, unit
        stored = {tensor.dtype for tensor in layers[0].parameters()}
        self._widens = torch.float32 not in stored or unit != CPU
        self._waiting = company
        if company and (rounded or unit != CPU or not self._widens):
            # What needs no widening is shared by the system, which keeps its files in memory.
            company.leave()
            self._waiting = None
        self._company: Company | None = None
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[bool]] | None = None
        self._last = -1
        self._count = 2  # of rooms, where nobody shares them

    def weights(self, i: int, written: bool) -> Weights:
        """Those of layer ``i``, by their names in it, in memory that the next call takes again.
        Where they will be ``written`` to, none is the files' own, or the others'; and the next is
        not read meanwhile: who writes computes for long, and needs the memory."""
        if written and "_rooms" not in self.__dict__:
            self._count = 1
        if self._waiting:
            self._join(i, self._waiting)
        stride, self._last = i - self._last, i
        if self._company and stride != 1:
            self._company.leave()  # what is read ahead is read to its end before
            self._company = self._ahead = None
            del self._rooms
        wide = self._given(i, self._company) if self._company else self._own(i)
        following = i + stride if abs(stride) == 1 else i + 1
        # A GPU computes by itself meanwhile.
        ahead = self._unit == CPU and len(self._rooms) > 1
        if ahead and 0 <= following < len(self._layers):
            self._ahead = following, self._reader.submit(self._fill, following, self._company)
        if written and (self._company or not self._widens):
            return {name: tensor.clone() for name, tensor in wide.items()}
        return wide

    def stored(self, i: int) -> Weights:
        """Those of layer ``i``, of which matrices are as the files have them: ``products.linear``
        widens them."""
        own = self._layers[i].named_parameters()
        return {name: tensor if tensor.dim() > 1 else tensor.float() for name, tensor in own}

    @cached_property
    def can_be_stored(self) -> bool:
        """Whether nothing but linears takes matrices, which are as they are computed with."""
        modules = (module for layer in self._layers for module in layer.modules())
        linear = {id(one.weight) for one in modules if isinstance(one, torch.nn.Linear)}
        tensors = (tensor for layer in self._layers for tensor in layer.parameters())
        matrices = (tensor for tensor in tensors if tensor.dim() > 1)
        own = self._unit == CPU and not self._rounded
        return own and all(id(matrix) in linear for matrix in matrices)

    def _join(self, i: int, company: Company) -> None:
        """Go through the layers with the others, if layer ``i`` is the first."""
        self._waiting, self._company = None, company if i == 0 and company.join() else None
        try:
            _ = self._rooms
        except OSError:  # no memory that others see
            self._company = None
        if not self._company:
            company.leave()

    @property
    def values(self) -> int:
        """How many are in memory."""
        return sum(len(room) for room in self.__dict__.get("_rooms", ()))

    def _own(self, i: int) -> Weights:
        if not self._is_ahead(i):
            self._fill(i, None)
        return self._views(i)

    def _given(self, i: int, company: Company) -> Weights:
        """Layer ``i``, whoever reads it."""
        if i:
            company.has_passed(i - 1)
        if not self._is_ahead(i):
            if company.await_layer(i):
                company.given += 1
            else:
                self._fill(i, company)
        return self._views(i)

    def _is_ahead(self, i: int) -> bool:
        """Whether layer ``i`` was read while the last one computed."""
        if self._ahead is None:
            return False
        (found, future), self._ahead = self._ahead, None
        return future.result() and found == i

    def _fill(self, i: int, company: Company | None) -> bool:
        """Read layer ``i`` into its room; for all, where this is the one to do it. Returns whether
        that was done."""
        if company is None:
            self._copy(i)
            return True
        return company.is_reader() and company.await_room(i) and company.read(i, self._copy)

    def _copy(self, i: int) -> None:
        with torch.inference_mode(mode=False), torch.no_grad():
            for name, tensor in self._views(i).items():
                stored = self._layers[i].get_parameter(name).detach()
                if self._unit != CPU:
                    moved = stored.to(self._unit)
                    tensor.copy_(moved.to(self._rounded) if self._rounded else moved)
                    continue
                if tensor.data_ptr() == stored.data_ptr():
                    stored.flatten()[::1024].sum()  # of each page one: the system reads the file
                    continue
                pieces = (flat.view(-1).split(PIECE) for flat in (tensor, stored.contiguous()))
                for wide, piece in zip(*pieces, strict=True):
                    wide.copy_(piece.to(self._rounded) if self._rounded else piece)

    def _views(self, i: int) -> Weights:
        """Where the weights of layer ``i`` lie in fp32."""
        room = self._rooms[i % len(self._rooms)]
        with torch.inference_mode(mode=False), torch.no_grad():
            return {
                name: tensor if at is None else room[at : at + tensor.numel()].view(tensor.shape)
                for name, tensor, at in self._places(i)
            }

    def _places(self, i: int) -> Iterator[tuple[str, torch.Tensor, int | None]]:
        """Name of each weight, the weight as it is stored, and where in its room it is widened to;
        None: it is fp32 as it is."""
        at = 0
        for name, tensor in self._layers[i].named_parameters():
            if tensor.dtype == torch.float32 and not self._rounded and self._unit == CPU:
                yield name, tensor.detach(), None
            else:
                yield name, tensor, at
                at += -(-tensor.numel() // ALIGNED) * ALIGNED

    @cached_property
    def _rooms(self) -> list[torch.Tensor]:
        """Two or one, each for the widest layer; of those who go together, the same."""
        sizes = [0]
        for i in range(len(self._layers)):
            ends = [at + tensor.numel() for _, tensor, at in self._places(i) if at is not None]
            sizes += ends[-1:]
        values = -(-max(sizes) // ALIGNED) * ALIGNED
        with torch.inference_mode(mode=False):
            if not self._company:
                return [torch.empty(values, device=self._unit) for _ in range(self._count)]
            with self._company.room.open("r+b") as file:
                if file.seek(0, os.SEEK_END) < 8 * values:
                    file.truncate(8 * values)
                mapped = mmap.mmap(file.fileno(), 8 * values)
            return list(torch.frombuffer(mapped, dtype=torch.float32).split(values))
