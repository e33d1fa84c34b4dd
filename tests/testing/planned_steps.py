"""Steps of plans, whatever runs them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from phipipe import backends
from phipipe.errors import TargetError
from phipipe.recipe import device
from phipipe.steps import Step
from testing.plans import planned

PRECISIONS = ("int4", "int8", "fp16", "fp32")


def all_steps() -> Iterator[Step]:
    """Steps of the recipe that needs no network, on every backend, at all precisions, on a device
    for each unit."""
    devices = {unit.api: name for name in device.names() for unit in device.load(name).units}
    for backend in backends.names():
        for api, precision in itertools.product(sorted(backends.load(backend).apis), PRECISIONS):
            sets = (
                f"backend={backend}",
                f"precision={precision}",
                f"device={devices[api]}",
                "quantize={}",
                f"unit={api}",
            )
            with contextlib.suppress(TargetError):  # no such combination: nothing is run
                yield from planned(*sets).steps
