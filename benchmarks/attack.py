"""What strangers and accidents can do to phipipe: thousands of hostile inputs, and the count of
those that got through.

    python benchmarks/attack.py [--most 600] [--kills 20] [--seed 0] [--only packages …]

Packages whose files ask some runtime to run, read or write what it must not; resealed manifests,
checkpoints, recipes, paths and values on the command line; chat templates; killed installations.
The inputs are the tests' own (``tests/testing/hostile_*.py``), as many as there are up to
``--most`` of a kind, and the commands the real ones, in this process. Nothing leaves a temporary
folder but what toolchains are installed for ``chat`` and ``eval``. It ends with code 1 if anything
got through.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attacks
from attacks import Attack, Tally

from phipipe.settings import Settings


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    """A folder of our own, which is the cache of all commands, too; toolchains stay where the user
    has them."""
    toolchains = Settings.read().toolchains
    with tempfile.TemporaryDirectory(prefix="phipipe-attack-", ignore_cleanup_errors=True) as name:
        os.environ |= {
            "PHIPIPE_CACHE": str(Path(name) / "cache"),
            "PHIPIPE_TOOLCHAINS": str(toolchains),
        }
        yield Path(name)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=600, help="inputs of a kind")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    kinds: dict[str, Callable[[Attack], Tally]] = {
        "packages": attacks.packages,
        "manifests": attacks.manifests,
        "checkpoints": attacks.checkpoints,
        "recipes": attacks.recipes,
        "paths": attacks.paths,
        "templates": attacks.templates,
        "installations": lambda attack: attacks.installations(attack, asked.kills),
    }
    parser.add_argument("--only", nargs="+", choices=list(kinds), default=list(kinds))
    asked = parser.parse_args(words)
    tallies = []
    with _home() as home:
        attack = Attack(home, asked.most, asked.seed)
        for kind in asked.only:
            start = time.perf_counter()
            tally = kinds[kind](attack)
            tally.seconds = time.perf_counter() - start
            tallies.append(tally)
            print(tally.line(), flush=True)
            for line in tally.through[:20]:
                print(f"    {line}", flush=True)
    tried, through = (
        sum(tally.tried for tally in tallies),
        sum(len(tally.through) for tally in tallies),
    )
    print(f"{'together':38} {tried:6}   {'got through':34} {through:5}")
    return 1 if through else 0


if __name__ == "__main__":
    sys.exit(main())
