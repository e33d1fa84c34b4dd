"""Which workers a step can run on, by what they advertise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from phipipe.cluster.dask import PREFIX
from phipipe.cluster.resources import HOST
from phipipe.errors import TargetError
from phipipe.steps import Step
from phipipe.words import counted


def needs(step: Step, offers: Sequence[Mapping[str, float]], where: str) -> dict[str, float]:
    """The resources that ``step`` needs, of workers that offer ``offers`` at ``where``.

    Of several kinds of machines that may measure, it is always the same one that does: figures of
    one board compare, and the next run finds them.

    Raises:
        TargetError: no worker has them; says what is missing.
    """
    wanted = dict.fromkeys([f"toolchain {step.toolchain}", *step.machine], 1.0)
    if step.memory_bytes:
        wanted["memory_gib"] = round(step.memory_bytes / 2**30, 3)
    able = fitting(wanted, offers)
    if not able:
        raise _impossible(step, wanted, offers, where)
    hosts = [label for worker in able for label in worker if label.startswith(HOST)]
    return wanted | ({min(hosts): 1.0} if step.measurement and hosts else {})


def _impossible(
    step: Step, wanted: Mapping[str, float], offers: Sequence[Mapping[str, float]], where: str
) -> TargetError:
    lacking = [name for name, value in wanted.items() if not fitting({name: value}, offers)]
    words = " and ".join(
        f"{wanted[name]:g} GiB of memory" if name == "memory_gib" else name
        for name in lacking or wanted
    )
    return TargetError(
        f"step `{step.name}` can run on none of {counted(len(offers), 'worker')}: it needs {words}",
        hint=f"start one that has it: phipipe worker --scheduler "
        f"{PREFIX}{where.partition('://')[2]}",
    )


def fitting(
    wanted: Mapping[str, float], offers: Sequence[Mapping[str, float]]
) -> list[Mapping[str, float]]:
    """The workers that have all that is wanted."""
    return [
        worker
        for worker in offers
        if all(worker.get(name, 0) >= value for name, value in wanted.items())
    ]
