"""A worker on another kind of machine.

``python -m testing.other_machine PROCESSOR WORDS…`` is ``phipipe WORDS…`` there.
"""

from __future__ import annotations

import sys

from phipipe import executor, measure
from phipipe.cli import main

if __name__ == "__main__":
    there = {**measure.host(), "processor": sys.argv.pop(1)}
    measure.host = executor.host = lambda: there  # type: ignore[attr-defined]
    sys.exit(main())
