"""What the user decides: environment variables and files of settings, and what of the environment
our children get.

The one place where ``PHIPIPE_*`` variables are read.
"""

from __future__ import annotations

from phipipe.settings.config import given
from phipipe.settings.environment import (
    COMPUTING,
    FENCE,
    INSTALLING,
    OFFLINE,
    child_environment,
    installer_environment,
    is_among,
)
from phipipe.settings.rows import SECRET
from phipipe.settings.settings import Settings, compute

__all__ = (
    "COMPUTING",
    "FENCE",
    "INSTALLING",
    "OFFLINE",
    "SECRET",
    "Settings",
    "child_environment",
    "compute",
    "given",
    "installer_environment",
    "is_among",
)
