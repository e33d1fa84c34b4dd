"""A GPU that is none: tensors that say they are on a device of their own, and meet no others.

Their values lie on the CPU, where everything is computed; what PyTorch would ask of a GPU holds:
operands of one operation are on one device, and only ``to``, ``cpu`` and ``copy_`` go from one to
another. Numbers of one element may be the CPU's. As strict as CUDA, and stricter with indices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from phipipe.models import compute

NAME = "lazy"  # a device that PyTorch knows and has no kernels for
UNIT = torch.device(NAME, 0)
MOVES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
computed: Counter[str] = Counter()  # operations that were done there, by name
doubles = True  # whether it has fp64


class There(torch.Tensor):
    """A tensor on the device, whose values are those of ``inner``."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> There:
        made: There = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=UNIT,
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        """As of any tensor: PyTorch has it for its own kinds alone."""
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Of no tensor on a GPU."""
        raise TypeError(f"a tensor on `{NAME}` has no array: copy it to the CPU first")

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _done(func, args, dict(kwargs or {}))


class _Mode(TorchDispatchMode):
    """Hears what is made on the device, too."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _done(func, args, dict(kwargs or {}))


def _done(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(one, There) for one in given)
    others = [one for one in given if not isinstance(one, There) and one.dim()]
    if func is torch.ops.aten._has_compatible_shallow_copy_type.default:  # ``Module.to`` asks
        return there == (not others)
    if there and others and func not in MOVES:
        raise RuntimeError(f"{func} was given tensors on `{NAME}` and on the CPU")
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]) == UNIT
        kwargs |= {"device": compute.CPU} if there else {}
    if func is torch.ops.aten.copy_.default:
        there = isinstance(args[0], There)
    found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not there:
        return found
    computed[str(func)] += 1
    if not doubles and any(one.dtype is torch.float64 for one in tree_leaves(found)):
        raise TypeError(f"`{NAME}` has no fp64")
    written = [one for one in given if isinstance(one, There) and one.inner is found]
    return written[0] if written else tree_map(_wrapped, found)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, There) else value


def _wrapped(value: Any) -> Any:
    return There(value) if isinstance(value, torch.Tensor) else value


def _no_grad(mode: bool = True) -> Any:
    return torch.no_grad() if mode else nullcontext()


@contextmanager
def pretended(*, learns: bool = True, free_bytes: int = 2**40) -> Iterator[None]:
    """While this lasts, this machine has such a GPU, and no other."""
    kinds = compute._KINDS
    kind = compute._Kind(
        title="pretended GPU",
        api="none",
        is_there=lambda: True,
        name=lambda: "Pretended 1",
        free_bytes=lambda: free_bytes,
        peak_bytes=lambda: 4096,
        reset=lambda: None,
        release=lambda: None,
        lacks_doubles=not learns,
    )
    compute._KINDS = {NAME: kind}  # type: ignore[misc]
    compute._problem.cache_clear()
    # else PyTorch would move what `tensor` makes behind our back
    torch._C._set_only_lift_cpu_tensors(True)
    # which has tensors of its own kind, and they cannot be wrapped
    inference_mode, torch.inference_mode = torch.inference_mode, _no_grad
    # which transformers asks, and which does not know this device
    autocasts, torch.is_autocast_enabled = torch.is_autocast_enabled, lambda kind: False
    try:
        with _Mode():
            yield
    finally:
        torch.inference_mode, torch.is_autocast_enabled = inference_mode, autocasts
        torch._C._set_only_lift_cpu_tensors(False)
        compute._KINDS = kinds  # type: ignore[misc]
        compute._problem.cache_clear()
