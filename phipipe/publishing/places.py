"""The place at an address."""

from __future__ import annotations

from phipipe.errors import ToolchainError
from phipipe.publishing.hub import HubPlace
from phipipe.publishing.place import Place
from phipipe.recipe.addresses import Address, HubAddress


def of(address: Address, private: bool | None = None) -> Place:
    """What speaks to ``address``; nothing is asked of it yet. ``private``: see ``HubPlace``.

    Raises:
        ToolchainError: what it needs is not installed.
        RecipeError: the user's environment leads nowhere.
    """
    if isinstance(address, HubAddress):
        return HubPlace(address, private)
    raise ToolchainError("not yet")
