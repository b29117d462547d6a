"""Every row of what FIRST says when it does not answer, as an error that says what to do."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._first_dialect import Condition, condition_of, error_of, unwrapped
from scaleinfer.backends._wire import WireResponse
from scaleinfer.errors import (
    AuthError,
    EndpointError,
    Overloaded,
    Permanent,
    RateLimited,
    Starting,
    Transient,
)


def coded(code: str, message: str, **info: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "info": info}}


def response(status: int, body: Any) -> WireResponse:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return WireResponse(status, {}, data)


def error(status: int, body: Any) -> EndpointError:
    return error_of(
        unwrapped(response(status, body)),
        endpoint="https://first/sophia/vllm/v1",
        model="m",
        window_s=60.0,
        poll_s=20.0,
    )


INACTIVE = "Token is either not active or invalid"
LAPSED = (
    "Error: Permission denied from internal policies. This is likely due to a "
    "high-assurance timeout. Please logout by visiting https://app.globus.org/logout"
)
WRAPPED = (
    "Error: Could not process request: API request failed with status code: {}\n Response text: {}"
)
MISSING = "Error: Missing ('Authorization': 'Bearer <your-access-token>') in request headers."
FIELDS = [{"field": "messages", "message": "Field required", "type": "missing"}]
LONG = {"error": {"message": "This model's maximum context length is 10 tokens.", "code": 400}}

# Status, body, condition, class, fatal, seconds to wait, a word of the hint.
ROWS = [
    (401, {"detail": MISSING}, "NO_HEADER", AuthError, True, None, "scaleinfer login first"),
    (401, coded("unauthorized", INACTIVE), "STALE_TOKEN", AuthError, True, None, "login first"),
    (
        401,
        coded("unauthorized", f"Token introspection: {INACTIVE}"),
        "STALE_TOKEN", AuthError, True, None, "login first",
    ),
    (
        401,
        coded("unauthorized", "Access token expired."),
        "STALE_TOKEN", AuthError, True, None, "login first",
    ),
    (401, coded("unauthorized", LAPSED), "LAPSED", AuthError, True, None, "every 30 days"),
    (
        401,
        coded("unauthorized", "Error: Permission denied. Must authenticate with anl.gov."),
        "WRONG_PROVIDER", AuthError, True, None, "app.globus.org/logout",
    ),
    (
        401,
        coded("unauthorized", "Permission denied due to IdP domain restrictions."),
        "DENIED", Permanent, True, None, "does not change that",
    ),
    (
        401,
        coded("unauthorized", "Permission denied due to Globus Group restrictions."),
        "DENIED", Permanent, True, None, "does not change that",
    ),
    (
        404,
        coded("endpoint_not_found", "The requested endpoint 'sophia-vllm-x' does not exist."),
        "UNKNOWN_MODEL", Permanent, True, None, "lists the models",
    ),
    (404, coded("cluster_not_found", "x"), "UNKNOWN_CLUSTER", Permanent, True, None, "clusters"),
    (400, coded("unsupported_framework", "x"), "BAD_ROUTE", Permanent, True, None, "framework"),
    (400, coded("unsupported_endpoint", "x"), "BAD_ROUTE", Permanent, True, None, "framework"),
    (
        422,
        coded("invalid_request", "Invalid FIRST control fields.", errors=FIELDS),
        "BAD_FIELD", Permanent, False, None, "",
    ),
    (422, {"detail": [{"msg": "no"}]}, "BAD_FIELD", Permanent, False, None, ""),
    (429, {"detail": "Too many requests."}, "TOO_MANY_REQUESTS", RateLimited, False, 1.0, ""),
    (
        429,
        {"error": "Rate limit exceeded", "message": "Slow down", "retry_after": "1 second"},
        "TOO_MANY_REQUESTS", RateLimited, False, 1.0, "",
    ),
    (
        429,
        {"error": "Rate limit exceeded", "message": "Slow down", "retry_after": "2 minutes"},
        "TOO_MANY_REQUESTS", RateLimited, False, 120.0, "",
    ),
    (
        429,
        coded("too_many_requests", "Tokens/minute limit exceeded", user_model_usage=70000),
        "TOO_MANY_TOKENS", RateLimited, False, 60.0, "",
    ),
    (
        503,
        coded("internal_endpoint_error", "Endpoint 'sophia-vllm-m' is offline."),
        "OFFLINE", Overloaded, False, 20.0, "",
    ),
    (
        503,
        coded(
            "internal_endpoint_error",
            "Error: Endpoint x online but not ready to receive tasks. Please try again later.",
        ),
        "NOT_READY", Starting, False, 20.0, "",
    ),
    (
        503,
        b"Error: Endpoint x online but not ready to receive tasks. Please try again later.",
        "NOT_READY", Starting, False, 20.0, "",
    ),
    (
        503,
        coded("internal_endpoint_error", "Error: 'm' is not currently live on Metis."),
        "NOT_LIVE", Overloaded, False, 20.0, "",
    ),
    (503, coded("cluster_under_maintenance", "x"), "MAINTENANCE", Overloaded, False, 20.0, ""),
    (
        503,
        {"detail": "Service is temporarily down for maintenance."},
        "MAINTENANCE", Overloaded, False, 20.0, "",
    ),
    (408, coded("request_timeout", "x", task_id="t"), "TIMED_OUT", Transient, False, None, "300 s"),
    (504, coded("x", "late", timeout=120), "UPSTREAM_TIMED_OUT", Transient, False, None, "less"),
    (500, {"error": {"code": "internal_error", "error_id": "1"}}, "OTHER", Transient, False, None,
     ""),
    (500, b"Internal Server Error", "OTHER", Transient, False, None, ""),
    (404, b"<!doctype html><title>Not Found</title>", "OTHER", Permanent, True, None, ""),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_every_row(row: tuple[int, Any, str, type[EndpointError], bool, float | None, str]) -> None:
    status, body, condition, kind, fatal, after, hint = row
    assert condition_of(response(status, body)) is Condition[condition]
    found = error(status, body)
    assert type(found) is kind
    assert (found.fatal, found.retry_after, found.status) == (fatal, after, status)
    assert hint in found.hint


@pytest.mark.parametrize("body", [row[1] for row in ROWS if isinstance(row[1], dict)])
def test_the_gateways_own_words_are_in_the_message(body: dict[str, Any]) -> None:
    said = body["error"].get("message") if isinstance(body.get("error"), dict) else None
    assert not said or said[:300] in error(503, body).message


def test_a_bad_field_is_named() -> None:
    found = error(422, coded("invalid_request", "Invalid FIRST control fields.", errors=FIELDS))
    assert "messages: Field required" in found.message


def test_a_timeout_says_so() -> None:
    assert error(408, coded("request_timeout", "x")).timed_out
    assert error(504, coded("x", "x")).timed_out


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, LONG, Permanent),
        (422, {"detail": "no"}, Permanent),
        (429, {"error": {"message": "slow"}}, RateLimited),
        (503, {"error": {"message": "full"}}, Overloaded),
        (500, {"error": {"message": "broke"}}, Transient),
    ],
)
def test_what_sophias_server_said_is_unwrapped(
    status: int, body: Any, kind: type[EndpointError]
) -> None:
    inner = orjson.dumps(body).decode()
    wrapped = coded("internal_endpoint_error", WRAPPED.format(status, inner))
    found = error(500, wrapped)
    assert type(found) is kind
    assert found.status == status


def test_a_long_context_is_known_through_the_wrapping() -> None:
    body = coded("internal_endpoint_error", WRAPPED.format(400, orjson.dumps(LONG).decode()))
    assert "Shorten the prompt" in error(500, body).hint


@pytest.mark.parametrize("status", [400, 429, 500])
def test_what_a_direct_server_said_is_unwrapped(status: int) -> None:
    said = orjson.dumps({"error": {"message": "it isn't", "code": "c"}})
    body = coded("internal_endpoint_error", f"Upstream endpoint returned {status}: {said!r}.")
    inner = unwrapped(response(status, body))
    assert (inner.status, inner.body) == (status, said)


def test_a_cut_excerpt_is_still_shown() -> None:
    said = orjson.dumps({"error": {"message": "x" * 400}})[:256]
    body = coded("internal_endpoint_error", f"Upstream endpoint returned 400: {said!r}.")
    found = error(400, body)
    assert type(found) is Permanent
    assert "xxxx" in found.message


def test_what_is_not_wrapped_stays() -> None:
    good = WireResponse(200, {}, b"API request failed with status code: 400\n Response text: {}")
    assert unwrapped(good) is good
    plain = response(500, b"Internal Server Error")
    assert unwrapped(plain) is plain


@given(st.integers(400, 599), st.binary(max_size=300))
def test_no_body_is_too_strange(status: int, body: bytes) -> None:
    assert isinstance(error(status, body), EndpointError)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "detail", "message", "code", "info"]), inner)
    ),
    max_leaves=8,
)


@given(st.integers(400, 599), JSON)
def test_no_json_is_too_strange(status: int, body: Any) -> None:
    try:
        data = orjson.dumps(body)
    except orjson.JSONEncodeError:
        return
    assert isinstance(error(status, data), EndpointError)
