"""Requests that are not answered, as OpenAI's API says it."""

from __future__ import annotations

from collections.abc import Mapping

from phipipe.steps import Json

INVALID, OURS = "invalid_request_error", "server_error"


class Refusal(Exception):
    """Why a request gets no answer: an HTTP ``status`` and the error object that goes with it.

    Attributes:
        headers: of the response, besides the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def document(self) -> dict[str, Json]:
        """The error object."""
        kind = INVALID if self.status < 500 else OURS
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def busy(waiting: int, seconds: int) -> Refusal:
    """So many requests wait already; ``seconds`` later there may be room."""
    return Refusal(
        503,
        f"{waiting} requests are waiting already: try again",
        code="busy",
        headers={"Retry-After": str(seconds)},
    )
