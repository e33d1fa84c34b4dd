"""What the user writes about the cache: `cache:`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from phipipe.recipe.strict import Model


class Caching(Model):
    """What of a build stays in the cache. It changes no result, and no key."""

    keep: Literal["all", "artifacts"] | None = Field(
        None,
        description="`artifacts`: packages stay in their folders, and reports; what was only on "
        "the way to them goes when the last step that reads it is done. `all`: everything stays. "
        "Without it the setting `keep` says.",
    )
