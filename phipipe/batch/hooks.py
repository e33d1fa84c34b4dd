"""What is told when a batch has ended: a command, or a URL."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT_S = 60.0
_QUOTED = re.compile(r'"([^"]*)"|(\S+)')


def tell(hook: str, summary: Path, exit_code: int) -> str | None:
    """Start the command ``hook`` with the path of ``summary`` (``batch.json``), or send that file
    to the URL ``hook``.

    A command finds the exit code in ``PHIPIPE_EXIT_CODE``; a URL gets a POST, JSON, with it in
    ``X-Phipipe-Exit-Code``. Returns what went wrong, without what a URL may carry as a secret: the
    batch is done all the same.
    """
    if re.match(r"https?://", hook, re.IGNORECASE):
        return _post(hook, summary, exit_code)
    environment = os.environ | {"PHIPIPE_EXIT_CODE": str(exit_code)}
    try:
        done = subprocess.run(
            [*_split(hook), str(summary)], env=environment, timeout=TIMEOUT_S, check=False
        )
    except (OSError, ValueError, IndexError) as error:
        return f"the hook `{hook}` does not start: {getattr(error, 'strerror', None) or error}"
    except subprocess.TimeoutExpired:
        return f"the hook `{hook}` was ended after {TIMEOUT_S:.0f} s"
    return f"the hook `{hook}` ended with exit code {done.returncode}" if done.returncode else None


def doubt(hook: str) -> str | None:
    """Why ``hook`` could not be told now; known before the work that it is to hear of."""
    if re.match(r"https?://", hook, re.IGNORECASE):
        return None
    try:
        (program, *_) = _split(hook)
    except ValueError:
        return f"the hook `{hook}` does not start: it is no command"
    return (
        None
        if shutil.which(program)
        else f"the hook `{hook}` will not start: there is no command `{program}`"
    )


def _split(command: str) -> list[str]:
    """The words of a command; on Windows a backslash is part of a path."""
    if os.name != "nt":
        return shlex.split(command)
    return [quoted or plain for quoted, plain in _QUOTED.findall(command)]


def _post(url: str, summary: Path, exit_code: int) -> str | None:
    host = re.sub(
        r"^(https?://)(?:[^/@]*@)?([^/?#]*).*$", r"\1\2", url, flags=re.IGNORECASE | re.DOTALL
    )
    headers = {"Content-Type": "application/json", "X-Phipipe-Exit-Code": str(exit_code)}
    try:
        request = urllib.request.Request(url, summary.read_bytes(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        return f"the hook at {host} answered {error.code}"
    except (OSError, ValueError) as error:
        return (
            f"the hook at {host} cannot be reached: "
            f"{getattr(error, 'reason', None) or type(error).__name__}"
        )
