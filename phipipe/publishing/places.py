"""The place at an address."""

from __future__ import annotations

from phipipe.errors import ToolchainError
from phipipe.publishing.bucket import BucketPlace
from phipipe.publishing.hub import HubPlace
from phipipe.publishing.place import Place
from phipipe.recipe.addresses import Address, BucketAddress, HubAddress


def of(address: Address, private: bool | None = None) -> Place:
    """What speaks to ``address``; nothing is asked of it yet. ``private``: see ``HubPlace``.

    Raises:
        ToolchainError: what it needs is not installed.
        RecipeError: the user's environment leads nowhere.
    """
    if isinstance(address, HubAddress):
        return HubPlace(address, private)
    if isinstance(address, BucketAddress):
        return BucketPlace(address)
    raise ToolchainError("not yet")
