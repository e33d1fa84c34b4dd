"""A machine that is as different from this one as it can be made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

FAKETIME = sorted(  # where systems have it; without it, the clock alone is not another
    [
        *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
        *Path("/usr/local/lib").glob("faketime/libfaketimeMT.so.1"),
        *Path("/opt/homebrew/lib").glob("faketime/libfaketime.1.dylib"),
    ]
)


def works(*words: str) -> bool:
    """Whether this system lets us run what ``words`` begin with."""
    if shutil.which(words[0]) is None:
        return False
    done = subprocess.run([*words, sys.executable, "-c", ""], capture_output=True, check=False)
    return done.returncode == 0


def varied(home: Path) -> tuple[list[str], dict[str, str]]:
    """What a command is begun with, and its environment, on a machine that is as different as this
    one can be made: one core, a user of another id (in a user namespace, so that it still may read
    what is ours), another home, zone, locale, hash seed and clock."""
    before = []
    if works("taskset", "-c", "0"):
        before += ["taskset", "-c", "0"]
    if works("unshare", "--user", "--map-user=4242", "--map-group=4242"):
        before += ["unshare", "--user", "--map-user=4242", "--map-group=4242"]
    environment = {
        **os.environ,
        "HOME": str(home),
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "C",
        "LANG": "C",
        "PYTHONHASHSEED": "4242",
        "SOURCE_DATE_EPOCH": "1",
        "OMP_NUM_THREADS": "1",
    }
    if FAKETIME:  # children get no variables of its own, but a file in their home
        (home / ".faketimerc").write_text("+400d\n", "utf-8")
        preload = "DYLD_INSERT_LIBRARIES" if sys.platform == "darwin" else "LD_PRELOAD"
        environment |= {preload: str(FAKETIME[0])}
    return before, environment
