"""A real OCI registry on this machine: Debian's ``docker-registry``."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = "PHIPIPE_TEST_REGISTRY"  # where it is, if not on the path
USER, PASSWORD = "somebody", "rather-secret-password-0815"
# what `htpasswd -B` writes for them, at the lowest cost
HTPASSWD = "somebody:$2b$04$otzR7KoXfTozRqPbfDWBweB7QQfJnB2vjyNP.R.to9N3P9YogeCAK\n"
START_S = 20


def program() -> str:
    """Where the registry is; the test is skipped where there is none."""
    found = os.environ.get(PROGRAM) or shutil.which("docker-registry")
    if not found:
        pytest.skip("needs docker-registry (apt-get install docker-registry)")
    return found


@contextlib.contextmanager
def running(folder: Path, *, login: str = "", read_only: bool = False) -> Iterator[str]:
    """HOST:PORT of a registry that keeps its data in ``folder``; ``login``: a line of htpasswd."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_text(login)
    auth = f"auth: {{htpasswd: {{realm: here, path: {folder / 'htpasswd'}}}}}\n" if login else ""
    (folder / "config.yml").write_text(
        "version: 0.1\n"
        "log: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: true}}, "
        f"maintenance: {{readonly: {{enabled: {str(read_only).lower()}}}}}}}\n"
        f"{auth}http: {{addr: '{host}'}}\n"
    )
    log = (folder / "log").open("w")
    command = [program(), "serve", str(folder / "config.yml")]
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(host, server)
        yield host
    finally:
        server.terminate()
        server.wait()
        log.close()


def _wait(host: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://{host}/v2/").close()
            return
        except urllib.error.HTTPError:
            return  # it asks who we are
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the registry does not start")


def docker_config(folder: Path, host: str, user: str = USER, password: str = PASSWORD) -> Path:
    """A folder as `docker login` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / "config.json").write_text(f'{{"auths": {{"{host}": {{"auth": "{auth}"}}}}}}')
    return folder
