"""Errors as the servers of this world word them: OpenAI's dialect and vLLM's."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Literal

__all__ = ["Dialect", "Refusal"]

Dialect = Literal["openai", "vllm"]

_OPENAI_TYPES = {401: "invalid_request_error", 429: "requests", 404: "invalid_request_error"}
_VLLM_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    429: "RateLimitError",
}


class Refusal(Exception):  # noqa: N818 - it is an answer, not a failure of this server
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        message: What is wrong, in the server's words.
        param: The field of the request that is wrong, if it is one.
        code: OpenAI's code for it, such as `context_length_exceeded`.
        headers: Headers of the answer.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers: dict[str, str] = {}

    def body(self, dialect: Dialect) -> dict[str, Any]:
        """Return the error object a server of that dialect sends."""
        server_side = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if dialect == "vllm":
            if self.status == HTTPStatus.UNAUTHORIZED:
                return {"error": "Unauthorized"}
            kind = _VLLM_TYPES.get(self.status, "InternalServerError")
            code: str | int | None = self.status
        else:
            usual = "server_error" if server_side else "invalid_request_error"
            kind = _OPENAI_TYPES.get(self.status, usual)
            code = self.code
        error = {"message": self.message, "type": kind, "param": self.param, "code": code}
        return {"error": error}


def unknown_model(model: str) -> Refusal:
    """The model does not exist (404)."""
    return Refusal(
        HTTPStatus.NOT_FOUND,
        f"The model `{model}` does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
    )


def wrong_key(given: bool) -> Refusal:
    """The key is wrong or missing (401). The key itself is never repeated."""
    message = (
        "Incorrect API key provided."
        if given
        else "You didn't provide an API key in an Authorization header (Bearer auth)."
    )
    return Refusal(HTTPStatus.UNAUTHORIZED, message, code="invalid_api_key" if given else None)


def too_long(limit: int, tokens: int, *, chat: bool) -> Refusal:
    """The prompt does not fit into the context (400)."""
    what = "messages" if chat else "prompt"
    return Refusal(
        HTTPStatus.BAD_REQUEST,
        f"This model's maximum context length is {limit} tokens. However, your {what} resulted "
        f"in {tokens} tokens. Please reduce the length of the {what}.",
        param=what,
        code="context_length_exceeded",
    )


def no_response_format() -> Refusal:
    """An old server that does not know `response_format` (400)."""
    return Refusal(
        HTTPStatus.BAD_REQUEST,
        "Unrecognized request argument supplied: response_format",
        param="response_format",
    )


def queue_full(waiting: int) -> Refusal:
    """Too many wait already (503)."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"The server is overloaded: {waiting} requests wait. Please try again later.",
        code="overloaded",
    )


def outage() -> Refusal:
    """The server is down, says the gateway in front of it (503)."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Service unavailable (simulated outage).")
