"""What a compiled program needs of a machine: its system, its Python, its processor's features."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

from phipipe import hardware
from phipipe.errors import ToolchainError

# What a portable program for x86-64 uses beyond the oldest ones: that of 2013 and later.
X86_PORTABLE = frozenset(("avx", "avx2", "bmi2", "f16c", "fma"))
FIELDS = ("flags", "Features", "CPU implementer", "CPU part")  # of /proc/cpuinfo


@cache
def features() -> frozenset[str]:
    """The processor's features as the system names them; none where it does not tell them
    (Windows)."""
    if platform.system() == "Darwin":
        return _of_mac()
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return frozenset()
    words: set[str] = set()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in FIELDS:
            words |= set(value.split())
    return frozenset(words)


def _of_mac() -> frozenset[str]:
    try:
        answer = subprocess.run(
            ["sysctl", "machdep.cpu", "hw.optional"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    lines = answer.stdout.splitlines()
    told = [line for line in lines if line.startswith(("machdep.cpu.brand", "hw.optional."))]
    words = {
        word.lower()
        for line in lines
        if "features" in line.partition(":")[0]
        for word in line.partition(":")[2].split()
    }
    return frozenset((*told, *words))


def can_run(*, native: bool) -> bool:
    """Whether this machine is known to run a program that was compiled for its own features
    (``native``), or a portable one."""
    if native:
        return bool(features())
    if hardware.architecture() != "x86_64" or platform.system() == "Darwin":
        return True  # for Intel Macs, llama.cpp is compiled without these
    return features() >= X86_PORTABLE


def machine(*, native: bool) -> dict[str, str]:
    """What two machines must have in common to run the same compiled program.

    Raises:
        ToolchainError: ``native``, and this system does not tell its processor's features.
    """
    if native and not features():
        raise ToolchainError(
            f"{platform.system()} does not tell this processor's features",
            hint="leave out --native: a portable wheel runs on all of this system",
        )
    own = hashlib.sha256("\n".join(sorted(features())).encode()).hexdigest()
    return {
        "system": platform.system(),
        "machine": hardware.architecture(),
        "libc": " ".join(platform.libc_ver()),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "features": own if native else "portable",
    }
