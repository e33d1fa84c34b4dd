"""What no step may do: load a pickle, and use the network. Held by Python's own hooks, in the
process that does the step."""

from __future__ import annotations

import importlib.machinery
import ipaddress
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from phipipe.errors import SourceError

# Modules through which a process talks with children of its own; these pickles come from us.
OWN_PICKLES = {"multiprocessing.connection", "multiprocessing.queues"}


def prohibit() -> None:
    """From now on, in this process."""
    sys.addaudithook(refuse)
    sys.meta_path.insert(0, NoTorchLoad())


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Audit hook: no pickle is ever loaded (promise S1), and no step but download leaves this
    machine (S8)."""
    if event == "pickle.find_class":
        if sys._getframe(1).f_globals.get("__name__") not in OWN_PICKLES:
            refuse_pickle(f"`{arguments[0]}.{arguments[1]}`")
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if isinstance(address, tuple) and isinstance(address[0], str | bytes | bytearray):
            host = address[0] if isinstance(address[0], str) else os.fsdecode(bytes(address[0]))
            if not _is_local(host):
                raise PermissionError(
                    f"refused to connect to {host}: only the download step uses the network"
                )
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        name = arguments[0]
        host = os.fsdecode(name) if isinstance(name, str | bytes) else ""
        if not _is_local(host):
            raise PermissionError(
                f"refused to look up {host}: only the download step uses the network"
            )


def refuse_pickle(what: str) -> None:
    """Raise: pickles can run code."""
    raise SourceError(
        f"refused to unpickle {what}: a pickle can run any code",
        hint="use a checkpoint in safetensors format",
    )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("localhost", "")


class NoTorchLoad:
    """Import hook: ``torch.load`` refuses. With ``weights_only`` it has an unpickler that no audit
    hook sees."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch.serialization":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then_replace(module: ModuleType) -> None:
                execute(module)
                vars(module)["load"] = lambda f, *rest, **named: refuse_pickle(
                    f"`{getattr(f, 'name', f)}`"
                )

            spec.loader.exec_module = then_replace  # type: ignore[method-assign]
        return spec
