"""Who the user is to an OCI registry: from the environment, or from where docker and podman keep
it.

``OCI_REGISTRY``, ``OCI_USERNAME`` and ``OCI_PASSWORD`` stand together: a password goes to the
registry that it was given for, whatever addresses a recipe names. Else the files that `docker
login` and `podman login` write are read: passwords in them, and programs (``docker-credential-X``)
that keep them. Nothing of it is ever shown.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.steps import Json

VARIABLES = ("OCI_REGISTRY", "OCI_USERNAME", "OCI_PASSWORD")
DOCKER_HUB = "docker.io"
HELPER_S = 60  # a program may ask its user
MAX_BYTES = 2**20  # of such a file


def of(host: str) -> str | None:
    """What follows ``Basic`` for the registry ``host``; None where the user is nobody there.

    Raises:
        SourceError: the variables do not stand together.
    """
    given = [os.environ.get(name, "") for name in VARIABLES]
    if any(given[1:]) and not all(given):
        raise SourceError(
            "OCI_USERNAME and OCI_PASSWORD hold for one registry, which OCI_REGISTRY names",
            hint="set all three, such as OCI_REGISTRY=registry.example, or none of them",
        )
    if all(given) and given[0].lower() == host:
        return _basic(given[1], given[2])
    keys = [host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]
    if host == DOCKER_HUB:
        keys.append("https://index.docker.io/v1/")
    for file in _files():
        settings = _read(file)
        for key in keys:
            if found := _in_file(settings, key):
                return found
    return None


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _files() -> Iterator[Path]:
    """Where docker and podman keep what they know, the more special first."""
    variables = os.environ
    if named := variables.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    if folder := variables.get("DOCKER_CONFIG"):
        yield Path(folder) / "config.json"
    elif home := variables.get("HOME") or variables.get("USERPROFILE"):
        yield Path(home) / ".docker" / "config.json"
    if runtime := variables.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"


def _read(file: Path) -> Mapping[str, Json]:
    if not file.is_file():
        return {}
    try:
        return json_files.read_object(file, MAX_BYTES)
    except SourceError:
        raise SourceError(
            f"`{file}` is not as `docker login` writes it", hint="log in again, or correct it"
        ) from None


def _in_file(settings: Mapping[str, Json], key: str) -> str | None:
    known = _mapping(settings.get("auths"))
    entry = _mapping(known.get(key))
    auth = entry.get("auth")
    if isinstance(auth, str) and auth:
        try:
            base64.b64decode(auth, validate=True)
        except (binascii.Error, ValueError):
            raise SourceError(f"the entry for `{key}` of `docker login` is damaged") from None
        return auth
    helper = _mapping(settings.get("credHelpers")).get(key)
    if helper is None and key in known:
        helper = settings.get("credsStore")
    return _kept(helper, key) if isinstance(helper, str) and helper else None


def _kept(helper: str, key: str) -> str | None:
    """What the program ``docker-credential-HELPER`` keeps for ``key``, if anything."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", helper):
        raise SourceError(f"`{ascii(helper)[1:-1]}` is no name of a credential helper")
    program = f"docker-credential-{helper}"
    try:
        answer = subprocess.run(
            [program, "get"],
            input=key,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=HELPER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        raise SourceError(
            f"`{program}`, which keeps the password for `{key}`, does not answer",
            hint="log in again, or set OCI_REGISTRY, OCI_USERNAME and OCI_PASSWORD",
        ) from None
    if answer.returncode:
        return None  # it keeps none
    told = _mapping(json_files.parse(answer.stdout.encode(), Path(program)))
    user, secret = told.get("Username"), told.get("Secret")
    return _basic(user, secret) if isinstance(user, str) and isinstance(secret, str) else None


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}
