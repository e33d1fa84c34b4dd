"""``python -m phipipe``: the same as the ``phipipe`` command."""

from __future__ import annotations

from phipipe.cli import main

if __name__ == "__main__":
    main()
