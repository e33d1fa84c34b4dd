"""What this machine advertises as a member of a cluster."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from phipipe import hardware
from phipipe.errors import TargetError, ToolchainError
from phipipe.evaluate import speed
from phipipe.recipe import device
from phipipe.recipe.device import Device
from phipipe.store.keys import key_of
from phipipe.toolchains import environments

HOST = "host "  # labels of machines that count as the same for measurements
UNLIMITED = 1_000_000.0  # of a resource that is a label


def resources(devices: Sequence[str], toolchains: Sequence[str]) -> dict[str, float]:
    """What this machine advertises as a worker: memory, and labels for system, architecture, kinds,
    toolchains.

    ``devices``: what it is, names or a user's own files. ``toolchains``: the only ones that it does
    steps of; none means all that exist for it.

    Raises:
        TargetError: there is no such device, or this machine cannot be it.
        ToolchainError: there is no such toolchain.
    """
    labels = [
        f"system {platform.system().lower()}",
        *(f"machine {kind}" for kind in sorted(hardware.kinds())),
    ]
    labels += [f"device {_own(name).name}" for name in devices]
    if unknown := set(toolchains) - set(environments.names()):
        message = f"unknown toolchain `{min(unknown)}`"
        raise ToolchainError(message, hint=f"toolchains: {', '.join(environments.names())}")
    offered = toolchains or [
        name for name in environments.names() if environments.foreign(name) is None
    ]
    labels += [f"toolchain {name}" for name in offered]
    labels.append(f"{HOST}{key_of(speed.host())[:12]}")
    memory_gib = round(hardware.memory_bytes() / 2**30, 2)
    return dict.fromkeys(labels, UNLIMITED) | {"memory_gib": memory_gib}


def _own(name: str) -> Device:
    """The device ``name``, which this machine is said to be.

    Raises:
        TargetError: it cannot be.
    """
    target = device.load(name)
    if target.architecture not in (None, hardware.architecture()):
        raise TargetError(
            f"this machine is no {target.title}: its processor is {hardware.architecture()}, not "
            f"{target.architecture}",
            hint="leave --device out: it serves all steps that are not bound to a device",
        )
    if (missing := hardware.lacks(target.units[0].api)) and len(target.units) == 1:
        raise TargetError(
            f"this machine is no {target.title}: it has no {missing}", hint="leave --device out"
        )
    return target
