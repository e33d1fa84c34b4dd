"""A worker on another kind of machine.

``python -m testing.other_machine PROCESSOR WORDS…`` is ``phipipe WORDS…`` there.
"""

from __future__ import annotations

import sys

from phipipe.cli import main
from phipipe.evaluate import speed
from phipipe.execution import bench

if __name__ == "__main__":
    there = {**speed.host(), "processor": sys.argv.pop(1)}
    speed.host = bench.host = lambda: there  # type: ignore[attr-defined]
    sys.exit(main())
