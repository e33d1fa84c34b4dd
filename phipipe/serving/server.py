"""The running server: its socket, its event loop and its end."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Protocol

from phipipe.errors import Interrupted
from phipipe.serving import address
from phipipe.serving.engine import Engine

JOIN_S = 20.0


class Front(Protocol):
    """The HTTP side (``front.Front``): it ends soon after ``should_exit`` is set."""

    should_exit: bool

    def run(self, sockets: list[socket.socket] | None = None) -> None: ...


class Server:
    """A package behind HTTP. ``Package.serve`` starts one; use it in a ``with`` block.

    Attributes:
        base_url: what OpenAI clients take as such: ``http://127.0.0.1:8080/v1``.
        model: what requests call the model: the package's name.
        context: tokens of a prompt with its answer.
    """

    def __init__(self, listening: socket.socket, front: Front, engine: Engine, model: str) -> None:
        """Serve by ``front`` on the socket ``listening``; it begins with ``run`` or ``start``."""
        self.base_url, self.model = address.base_url(listening), model
        self.context = engine.context
        self._listening, self._engine = listening, engine
        self._front = front
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM.

        Raises:
            PhipipeError: the model's process died, and so did the one after it.
        """
        try:
            if self._engine.failure is None:
                self._front.run(sockets=[self._listening])
        except (KeyboardInterrupt, Interrupted):  # uvicorn has ended well, and repeats the signal
            pass
        finally:
            self.close()
        if self._engine.failure is not None:
            raise self._engine.failure

    def start(self) -> None:
        """Serve in a thread, until ``close``."""
        serving = {"sockets": [self._listening]}
        self._thread = threading.Thread(
            target=self._front.run, kwargs=serving, name="phipipe-http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Let the server end soon; from any thread."""
        self._front.should_exit = True

    def close(self) -> None:
        """End the server and the model's process. Twice is fine."""
        self.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)
        self._engine.close()
        self._listening.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
