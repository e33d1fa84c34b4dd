"""uvicorn, set up for one application on this machine."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette

from phipipe.serving.engine import Engine

END_S = 3  # how long answers that were told of the end may take to be sent


class Front(uvicorn.Server):
    """Ends answers before it waits for their connections."""

    def __init__(self, app: Starlette, engine: Engine) -> None:
        super().__init__(_config(app))
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self._engine.close)
        await super().shutdown(sockets)


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=END_S,
    )
