"""phipipe: one recipe in, one verified artifact out, for any edge runtime."""

from __future__ import annotations

__version__ = "0.1.0"
