"""Where an artifact's figures are taken: on the device, on a machine like it, emulated, or
anywhere."""

from __future__ import annotations

from phipipe import hardware
from phipipe.backends.base import AnyBackend
from phipipe.recipe.device import Device
from phipipe.settings import Settings


def measured_there(target: Device, api: str, backend: AnyBackend) -> bool:
    """Whether an artifact for ``target``'s unit ``api`` is measured on such a unit.

    A machine that surely has one will do; and where steps go to other machines, one that says it
    *is* the device. With PHIPIPE_COMPUTE=cpu nothing is measured on a GPU.
    """
    is_named = f"device {target.name}" in hardware.kinds() and backend.toolchain_on(api) is not None
    left_alone = api != "cpu" and Settings.read().compute == "cpu"
    return not left_alone and (is_named or (api in backend.host_apis and hardware.has(api)))


def on_target(target: Device, api: str, backend: AnyBackend) -> str:
    """Whether numbers taken where steps run are the device's own: "true"; "emulated"; or
    "false"."""
    is_one = hardware.kinds() & {*target.machines, f"device {target.name}"}
    if is_one and measured_there(target, api, backend):
        return "true"
    return "emulated" if api in backend.emulated else "false"


def opened_with(backend: AnyBackend, api: str, there: bool) -> tuple[str, str]:
    """Toolchain and API that an artifact for ``api`` is opened with: its own unit if it is
    ``there``, else the CPU."""
    own = backend.toolchain_on(api) if there else None
    return (own, api) if own else (backend.toolchain, "cpu")


def scored_with(target: Device, api: str, backend: AnyBackend) -> tuple[str, str]:
    """Toolchain and API that an artifact for ``target``'s ``api`` is scored with."""
    there = api not in backend.emulated and measured_there(target, api, backend)
    return opened_with(backend, api, there)


def machine(target: Device, api: str, on_target: str) -> tuple[str, ...]:
    """What a machine must be (``Step.machine``) for figures taken on its ``api`` to be ``target``'s
    own as far as ``on_target`` says so: otherwise any that has such a unit."""
    kinds, own = hardware.kinds(), f"device {target.name}"
    if on_target == "true" and own in kinds:
        return (own,)
    alike = [kind for kind in target.machines if kind in kinds][:1] if on_target == "true" else []
    has = [hardware.TOLD[api]] if api in hardware.TOLD else []
    return tuple(f"machine {kind}" for kind in dict.fromkeys([*alike, *has]))
