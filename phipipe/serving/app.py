"""The addresses of the server, and what they answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from phipipe.serving import bodies, guards
from phipipe.serving.bodies import Wanted, dumped
from phipipe.serving.engine import Engine, Job
from phipipe.serving.exchange import Exchange
from phipipe.serving.guards import refused
from phipipe.serving.refusals import Refusal
from phipipe.serving.replies import Reply
from phipipe.steps import Json

MAX_BYTES = 4 * 2**20  # of a body: more text than contexts hold
MOST_BYTES = 16 * MAX_BYTES  # that are read and dropped: who still sends does not hear an answer
READ_S = 60.0  # how long a client may take to send it
STREAM = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Answer = Callable[[Request], Awaitable[Response]]
Read = Callable[[Mapping[str, Json], str], Wanted]


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the server has: a ``model`` by its name, and who asks it. ``note`` hears of requests."""

    engine: Engine
    model: str
    fingerprint: str
    note: Callable[[str], object]
    created: int = field(default_factory=lambda: int(time.time()))

    def described(self) -> dict[str, Json]:
        """The model, as the API lists it; llama.cpp's and others' servers say the context so."""
        return {
            "id": self.model,
            "object": "model",
            "created": self.created,
            "owned_by": "phipipe",
            "context_length": self.engine.context,
        }


def application(
    service: Service, hosts: Sequence[str] | None, token: str | None, origins: Sequence[str]
) -> Starlette:
    """The server's whole application. ``hosts``: by what names it may be asked, None for any;
    ``origins``: of pages that may ask."""
    middleware = []
    if hosts is not None:
        middleware.append(Middleware(guards.Hosts, hosts=hosts))
    if origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
            )
        )
    if token is not None:
        middleware.append(Middleware(guards.Tokens, token=token))
    return Starlette(
        routes=_routes(service),
        middleware=middleware,
        exception_handlers={HTTPException: _known, Exception: _bug},
    )


def _routes(service: Service) -> list[Route]:
    async def health(request: Request) -> Response:
        return _json({"status": "ok"})

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [service.described()]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != service.model:
            raise Refusal(
                404, f"this server has `{service.model}`", code="model_not_found", param="model"
            )
        return _json(service.described())

    async def chat(request: Request) -> Response:
        return await _answered(service, request, bodies.chat, is_chat=True)

    async def completion(request: Request) -> Response:
        return await _answered(service, request, bodies.completion, is_chat=False)

    return [
        Route("/health", _heard(health)),
        Route("/v1/models", _heard(models)),
        Route("/v1/models/{name:path}", _heard(model)),
        Route("/v1/chat/completions", _heard(chat), methods=["POST"]),
        Route("/v1/completions", _heard(completion), methods=["POST"]),
    ]


def _heard(answer: Answer) -> Answer:
    async def heard(request: Request) -> Response:
        try:
            return await answer(request)
        except Refusal as refusal:
            return refused(refusal)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it

    return heard


async def _known(request: Request, error: Exception) -> Response:
    """An address or a method that there is not."""
    assert isinstance(error, HTTPException)
    words = {404: "there is no such address here", 405: "this address takes another method"}
    told = words.get(error.status_code, str(error.detail))
    return refused(Refusal(error.status_code, told, headers=error.headers))


async def _bug(request: Request, error: Exception) -> Response:
    return refused(Refusal(500, f"this is a bug in phipipe: {type(error).__name__}"))


async def _body(request: Request) -> bytes:
    """The body, if it is JSON of a size that makes sense.

    Raises:
        Refusal: it is not, or takes too long to come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "send JSON: `Content-Type: application/json`")
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(READ_S):
            async for part in request.stream():
                size += len(part)
                if size <= MAX_BYTES:
                    parts.append(part)
                if size > MOST_BYTES:
                    break
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {READ_S:.0f} s") from None
    if size > MAX_BYTES:
        raise Refusal(413, f"the body is larger than {MAX_BYTES} bytes")
    return b"".join(parts)


async def _answered(service: Service, request: Request, read: Read, is_chat: bool) -> Response:
    wanted = read(bodies.parsed(await _body(request)), service.model)
    reply = Reply(
        model=service.model,
        created=int(time.time()),
        fingerprint=service.fingerprint,
        is_chat=is_chat,
    )
    exchange = Exchange(service.engine, wanted, reply, service.note)
    answer = exchange.begun() if wanted.stream else exchange.whole()
    begun = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({begun, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not begun.done():
            raise ClientDisconnect
        told = begun.result()
    except BaseException:
        exchange.job.cancel()
        raise
    finally:
        begun.cancel()
        gone.cancel()
    if told is not None:
        return _json(told)
    return _Stream(exchange.events(), exchange.job)


async def _gone(request: Request) -> None:
    """Until the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """Events of a ``job``, which is cancelled when nobody reads them any more."""

    def __init__(self, events: AsyncIterator[bytes], job: Job) -> None:
        super().__init__(events, headers=STREAM, media_type="text/event-stream")
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


def _json(document: Mapping[str, Json]) -> Response:
    return Response(dumped(document), media_type="application/json")
