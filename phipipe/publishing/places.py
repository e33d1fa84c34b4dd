"""The place at an address."""

from __future__ import annotations

from collections.abc import Callable

from phipipe.publishing.bucket import BucketPlace
from phipipe.publishing.hub import HubPlace
from phipipe.publishing.place import Place
from phipipe.publishing.registry import RegistryPlace
from phipipe.recipe.addresses import Address, BucketAddress, HubAddress


def of(
    address: Address,
    private: bool | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Place:
    """What speaks to ``address``; nothing is asked of it yet. ``private``: see ``HubPlace``;
    ``note`` hears of waits.

    Raises:
        ToolchainError: what it needs is not installed.
        SourceError: the user's environment leads nowhere.
    """
    if isinstance(address, HubAddress):
        return HubPlace(address, private)
    if isinstance(address, BucketAddress):
        return BucketPlace(address)
    return RegistryPlace(address, note)
