"""What of phipipe's metadata is known only where a release is built: the project's addresses."""

from __future__ import annotations

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class CustomMetadataHook(MetadataHookInterface):
    """The addresses of the repository whose workflow builds this; none elsewhere, for a fork's are
    not ours."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add ``urls`` to ``metadata``."""
        server = os.environ.get("GITHUB_SERVER_URL", "")
        repository = os.environ.get("GITHUB_REPOSITORY", "")
        if not (server and repository):
            return
        home = f"{server}/{repository}"
        metadata["urls"] = {
            "Homepage": home,
            "Documentation": f"{home}/tree/main/docs",
            "Source": home,
            "Issues": f"{home}/issues",
            "Changelog": f"{home}/blob/main/CHANGELOG.md",
        }
