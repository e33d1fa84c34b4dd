"""Dask's side of a cluster: the scheduler's address, certificates, and the package itself."""

from __future__ import annotations

import ipaddress
import logging
from pathlib import Path
from typing import Any

from phipipe.errors import RecipeError, ToolchainError

PREFIX = "dask://"
CERTIFICATES = "(README: From a laptop to a cluster)"
CONNECT_S = 20.0


def address(url: str) -> str:
    """Dask's address of the scheduler at ``url`` (``dask://HOST:PORT``): TLS, except on this very
    machine.

    There, too, where Dask's settings ask for it: behind ``localhost`` may be a tunnel.

    Raises:
        RecipeError: the address makes no sense.
        ToolchainError: Dask is not installed.
    """
    host, colon, port = url.removeprefix(PREFIX).rpartition(":")
    if not url.startswith(PREFIX) or not colon or not port.isdigit() or not host:
        raise RecipeError(f"`{url}` is no scheduler's address", hint="give dask://HOST:PORT")
    plain = is_loopback(host) and not imported().Security().require_encryption
    return f"{'tcp' if plain else 'tls'}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this very machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def security(where: str, role: str) -> Any:
    """Dask's certificates for ``where``, as ``role`` ("client", "worker"); None where nothing is
    encrypted.

    Raises:
        RecipeError: there are none, or they are not where Dask's settings say.
        ToolchainError: Dask is not installed.
    """
    distributed = imported()
    if where.startswith("tcp://"):
        return None
    keys = distributed.Security(require_encryption=True)
    _check_files(where, role, keys)
    try:
        keys.get_connection_args(role)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"TLS cannot use its certificates: {error}", hint=f"set others {CERTIFICATES}"
        ) from None
    return keys


def _check_files(where: str, role: str, keys: Any) -> None:
    """See that Dask's settings name all files that ``role`` needs, and that these are there."""
    files = {"CA_FILE": keys.tls_ca_file}
    for kind in ("CERT", "KEY"):
        files[f"{role.upper()}__{kind}"] = getattr(keys, f"tls_{role}_{kind.lower()}")
    for name, value in files.items():
        setting = f"DASK_DISTRIBUTED__COMM__TLS__{name}"
        if not value:
            message = f"`{where}` is spoken to with TLS only, and {setting} is not set"
            raise RecipeError(message, hint=f"it names a PEM file; so do the others {CERTIFICATES}")
        if "\n" not in value and not Path(value).is_file():  # PEM itself will do, too
            raise RecipeError(
                f"{setting} names `{value}`, and there is no such file",
                hint=f"set it {CERTIFICATES}",
            )


def unreachable(where: str, error: BaseException) -> ToolchainError:
    """Why nobody can be spoken to at ``where``, which is told as users write it."""
    where = f"dask://{where.partition('://')[2]}"
    if isinstance(error, imported().comm.CommClosedError):
        return ToolchainError(
            f"who answers at `{where}` hangs up: TLS on one side only, certificates that do not "
            "belong together, or no scheduler",
            hint=f"set DASK_DISTRIBUTED__COMM__… on both sides alike {CERTIFICATES}",
        )
    reason = type(error).__name__
    cause: BaseException | None = error
    while cause:  # the first of all that has words
        reason = str(cause).partition("\n")[0] or reason
        cause = cause.__cause__ or cause.__context__
    return ToolchainError(
        f"no scheduler answers at `{where}`: {reason}", hint="dask scheduler --port 8786"
    )


def imported() -> Any:
    """The module ``distributed``."""
    try:
        import distributed
    except ImportError:
        raise ToolchainError(
            "`dask://` needs Dask, which is not installed", hint="pip install 'phipipe[dask]'"
        ) from None
    for name in [*logging.root.manager.loggerDict]:  # what matters is said by us
        if name.startswith("distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    return distributed
