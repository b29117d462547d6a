"""What the FIRST gateway says when it does not answer: the bodies, word for word."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson

from scaleinfer.testing._refusals import Refusal

if TYPE_CHECKING:
    from scaleinfer.testing._refusals import Dialect

__all__ = ["FirstRefusal"]

_HTML = "text/html; charset=utf-8"
_PAGE = b"<!doctype html><html><head><title>%b</title></head><body><h1>%b</h1></body></html>"
_EXCERPT = 256
_SHOWN_MODEL_SEPARATORS = str.maketrans({"/": "-", ".": "", "_": "-"})


class FirstRefusal(Refusal):
    """A refusal with a body of its own shape.

    Attributes:
        data: The body's JSON, or the body itself.
        content_type: Set if it is no JSON.
    """

    def __init__(self, status: int, data: Any, *, content_type: str | None = None) -> None:
        super().__init__(status, str(data))
        self.data = data
        self.content_type = content_type

    def body(self, dialect: Dialect) -> dict[str, Any]:
        """Return the body, if it is JSON."""
        del dialect
        found: dict[str, Any] = self.data
        return found


def _error(status: int, code: str, message: str, **info: Any) -> FirstRefusal:
    return FirstRefusal(status, {"error": {"code": code, "message": message, "info": info}})


def slug(cluster: str, framework: str, model: str) -> str:
    """Return the gateway's name for a model's endpoint."""
    short = model.rpartition("/")[2].lower().translate(_SHOWN_MODEL_SEPARATORS)
    return f"{cluster}-{framework}-{short}"


# Who asks.


def no_header() -> FirstRefusal:
    """No Authorization header."""
    text = "Error: Missing ('Authorization': 'Bearer <your-access-token>') in request headers."
    return FirstRefusal(HTTPStatus.UNAUTHORIZED, {"detail": text})


def inactive_token(*, again: bool) -> FirstRefusal:
    """A token that has expired, or never was one; worded otherwise for 60 s after the first."""
    said = "Token is either not active or invalid"
    said = f"Token introspection: {said}" if again else said
    return _error(HTTPStatus.UNAUTHORIZED, "unauthorized", said)


def lapsed() -> FirstRefusal:
    """The last login is more than 30 days ago."""
    return _error(
        HTTPStatus.UNAUTHORIZED,
        "unauthorized",
        "Error: Permission denied from internal policies. This is likely due to a high-assurance "
        "timeout. Please logout by visiting https://app.globus.org/logout, and log in again.",
    )


def wrong_provider() -> FirstRefusal:
    """Logged in with an identity that the gateway does not take."""
    said = "Error: Permission denied. Must authenticate with anl.gov. Currently: example.org."
    return _error(HTTPStatus.UNAUTHORIZED, "unauthorized", said)


def denied(by: str) -> FirstRefusal:
    """This user may not use this model."""
    what = "IdP domain" if by == "idp" else "Globus Group"
    said = f"Permission denied due to {what} restrictions."
    return _error(HTTPStatus.UNAUTHORIZED, "unauthorized", said)


# What is asked.


def unknown_endpoint(cluster: str, framework: str, model: str) -> FirstRefusal:
    """The model is not there."""
    said = f"The requested endpoint '{slug(cluster, framework, model)}' does not exist."
    return _error(HTTPStatus.NOT_FOUND, "endpoint_not_found", said)


def unknown_cluster(cluster: str) -> FirstRefusal:
    """The cluster is not there."""
    said = f"The requested cluster '{cluster}' does not exist."
    return _error(HTTPStatus.NOT_FOUND, "cluster_not_found", said)


def unsupported_framework(framework: str, cluster: str) -> FirstRefusal:
    """The cluster has no such framework."""
    said = f"Framework '{framework}' is not supported on cluster '{cluster}'."
    return _error(HTTPStatus.BAD_REQUEST, "unsupported_framework", said)


def unsupported_endpoint(path: str, cluster: str) -> FirstRefusal:
    """The cluster has no such route."""
    said = f"Endpoint '{path}' is not supported on cluster '{cluster}'."
    return _error(HTTPStatus.BAD_REQUEST, "unsupported_endpoint", said)


def bad_field(field: str, message: str, kind: str) -> FirstRefusal:
    """A field that the gateway itself reads is wrong or missing."""
    errors = [{"field": field, "message": message, "type": kind}]
    return _error(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid_request",
        "Invalid FIRST control fields.",
        errors=errors,
    )


def bad_session() -> FirstRefusal:
    """`X-ALCF-Session-ID` is too long, or not visible ASCII."""
    said = "X-ALCF-Session-ID must have at most 128 visible ASCII characters."
    return _error(HTTPStatus.BAD_REQUEST, "invalid_request", said)


def too_large() -> FirstRefusal:
    """A body over 2.5 MiB."""
    said = "An internal error occurred. Please contact the administrators."
    data = {"error": {"code": "internal_error", "message": said, "error_id": uuid4().hex}}
    return FirstRefusal(HTTPStatus.INTERNAL_SERVER_ERROR, data)


def no_page(method: str, path: str) -> FirstRefusal:
    """There is no such route: a web page."""
    status = HTTPStatus.NOT_FOUND
    if method == "POST" and path == "/v1/batches":
        status = HTTPStatus.METHOD_NOT_ALLOWED
    title = status.phrase.encode()
    return FirstRefusal(status, _PAGE % (title, title), content_type=_HTML)


# How much is asked.


def too_many_requests() -> FirstRefusal:
    """Over the requests a second of one user."""
    return FirstRefusal(HTTPStatus.TOO_MANY_REQUESTS, {"detail": "Too many requests."})


def too_many_tokens(of_all: float, of_user: float) -> FirstRefusal:
    """Over the tokens a minute."""
    return _error(
        HTTPStatus.TOO_MANY_REQUESTS,
        "too_many_requests",
        "Tokens/minute limit exceeded",
        global_model_usage=round(of_all),
        user_model_usage=round(of_user),
    )


# Batches.


def too_many_batches(most: int) -> FirstRefusal:
    """The user has as many active batches as one may have."""
    said = f"Quota of {most} active batch(es) exceeded."
    return _error(HTTPStatus.BAD_REQUEST, "quota_exceeded", said)


def same_file(path: str) -> FirstRefusal:
    """An active batch has the same input file."""
    said = f"Input file {path} already used by ongoing batch."
    return _error(HTTPStatus.BAD_REQUEST, "batch_ongoing", said)


def unknown_batch(name: str) -> FirstRefusal:
    """The user has no such batch."""
    return _error(HTTPStatus.NOT_FOUND, "batch_not_found", f"Batch {name} does not exist.")


def batch_early() -> FirstRefusal:
    """Its result is asked for before there is one."""
    said = "Batch not completed yet. Results not ready."
    return _error(HTTPStatus.BAD_REQUEST, "batch_ongoing", said)


def batch_failed(why: str) -> FirstRefusal:
    """It has failed."""
    return _error(HTTPStatus.BAD_REQUEST, "batch_failed", str((f"Batch failed: {why}", 400, "")))


# What state it is in.


def offline(endpoint: str) -> FirstRefusal:
    """The Globus Compute endpoint is down."""
    said = f"Endpoint '{endpoint}' is offline."
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, "internal_endpoint_error", said)


def not_ready(endpoint: str) -> FirstRefusal:
    """The model is starting, and this is not the request that started it."""
    said = (
        f"Error: Endpoint {endpoint} online but not ready to receive tasks. Please try again later."
    )
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, "internal_endpoint_error", said)


def not_live(model: str, cluster: str) -> FirstRefusal:
    """A standing server that does not have the model at the moment."""
    said = f"Error: '{model}' is not currently live on {cluster.title()}."
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, "internal_endpoint_error", said)


def timed_out() -> FirstRefusal:
    """The gateway gave up waiting for a task."""
    said = "Error: TimeoutError with compute task. The request may still be running."
    return _error(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", said, task_id=str(uuid4()))


def under_maintenance(cluster: str) -> FirstRefusal:
    """The cluster is under maintenance."""
    said = f"Cluster '{cluster}' is under maintenance."
    return _error(HTTPStatus.SERVICE_UNAVAILABLE, "cluster_under_maintenance", said)


def maintenance() -> FirstRefusal:
    """The whole service is under maintenance."""
    said = "Service is temporarily down for maintenance."
    return FirstRefusal(HTTPStatus.SERVICE_UNAVAILABLE, {"detail": said})


def from_upstream(refusal: Refusal, dialect: Dialect, *, direct: bool) -> FirstRefusal:
    """Wrap what the model's own server refused, as the gateway does on such a cluster."""
    said = orjson.dumps(refusal.body(dialect))
    if direct:
        message = f"Upstream endpoint returned {refusal.status}: {said[:_EXCERPT]!r}."
        return _error(refusal.status, "internal_endpoint_error", message)
    message = (
        f"Error: Could not process request: API request failed with status code: "
        f"{refusal.status}\n Response text: {said.decode()}"
    )
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal_endpoint_error", message)
