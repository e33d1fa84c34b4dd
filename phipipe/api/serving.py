"""A package behind an HTTP server, in the background of a Python program."""

from __future__ import annotations

from pathlib import Path

from phipipe.api import workplace
from phipipe.serving import start
from phipipe.serving.server import Server
from phipipe.serving.start import Options as Options


def serve(folder: Path, options: Options) -> Server:
    """Begin to serve the package in ``folder``: see ``Package.serve``.

    Raises:
        PhipipeError: as ``Package.serve``.
        TypeError: an option is of another kind.
    """
    workplace.texts(options.origins, "allow_origins")
    for name in ("context", "tokens", "waiting"):
        workplace.check_count(getattr(options, name), name)
    settings = workplace.of_user(workplace.silent).settings
    server = start.begin(folder, settings, workplace.silent, options)
    server.start()
    return server
