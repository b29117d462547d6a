"""How FIRST says what is wrong, in all of its five shapes of bodies."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.backends._dialect import error_from_response
from scaleinfer.errors import (
    AuthError,
    EndpointError,
    Overloaded,
    Permanent,
    RateLimited,
    Starting,
    Transient,
)

if TYPE_CHECKING:
    from scaleinfer.backends._wire import WireResponse

__all__ = ["LOGIN", "Condition", "condition_of", "error_of", "unwrapped"]

LOGIN = "scaleinfer login first"
_LIST = "scaleinfer endpoints --backend first:"
_SHOWN = 300
_WRAPPED = re.compile(
    r"API request failed with status code: (\d{3})\s*Response text: (.*)", re.DOTALL
)
_UPSTREAM = re.compile(r"Upstream endpoint returned (\d{3}): (b(['\"]).*\3)\.?", re.DOTALL)
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(second|minute)")
_OK = 200


class Condition(Enum):
    """What the gateway means."""

    NO_HEADER = auto()
    STALE_TOKEN = auto()
    LAPSED = auto()
    WRONG_PROVIDER = auto()
    DENIED = auto()
    UNKNOWN_MODEL = auto()
    UNKNOWN_CLUSTER = auto()
    BAD_ROUTE = auto()
    BAD_FIELD = auto()
    TOO_MANY_REQUESTS = auto()
    TOO_MANY_TOKENS = auto()
    OFFLINE = auto()
    NOT_READY = auto()
    NOT_LIVE = auto()
    MAINTENANCE = auto()
    TIMED_OUT = auto()
    UPSTREAM_TIMED_OUT = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class _Said:
    message: str
    code: str
    info: dict[str, Any]
    retry_after: float | None


def condition_of(response: WireResponse) -> Condition:
    """Return what a response other than 200 means."""
    return _condition(response.status, _said(response.body))


def _condition(status: int, said: _Said) -> Condition:  # noqa: PLR0911 - one for each meaning
    lower = said.message.lower()
    match status:
        case 401:
            return _refused(lower)
        case 404 if said.code == "endpoint_not_found":
            return Condition.UNKNOWN_MODEL
        case 404 if said.code == "cluster_not_found":
            return Condition.UNKNOWN_CLUSTER
        case 400 if said.code in {"unsupported_framework", "unsupported_endpoint"}:
            return Condition.BAD_ROUTE
        case 422:
            return Condition.BAD_FIELD
        case 429 if "token" in lower:
            return Condition.TOO_MANY_TOKENS
        case 429 if "too many requests" in lower or "rate limit" in lower:
            return Condition.TOO_MANY_REQUESTS
        case 408:
            return Condition.TIMED_OUT
        case 504:
            return Condition.UPSTREAM_TIMED_OUT
        case 503:
            return _away(lower, said.code)
    return Condition.OTHER


def _refused(lower: str) -> Condition:
    if "missing" in lower and "authorization" in lower:
        return Condition.NO_HEADER
    if "internal policies" in lower or "high-assurance" in lower:
        return Condition.LAPSED
    if "must authenticate with" in lower:
        return Condition.WRONG_PROVIDER
    return Condition.DENIED if "restrictions" in lower else Condition.STALE_TOKEN


def _away(lower: str, code: str) -> Condition:
    if "maintenance" in code or "maintenance" in lower:
        return Condition.MAINTENANCE
    if "not ready to receive" in lower:
        return Condition.NOT_READY
    if "not currently live" in lower:
        return Condition.NOT_LIVE
    return Condition.OFFLINE if "is offline" in lower else Condition.OTHER


@dataclass(frozen=True, slots=True)
class _Meaning:
    kind: type[EndpointError]
    hint: str = ""
    fatal: bool = False


_MEANINGS = {
    Condition.NO_HEADER: _Meaning(AuthError, f"Run `{LOGIN}`.", fatal=True),
    Condition.STALE_TOKEN: _Meaning(AuthError, f"Run `{LOGIN}`.", fatal=True),
    Condition.LAPSED: _Meaning(
        AuthError,
        f"FIRST wants a human to log in every 30 days: run `{LOGIN}` in a terminal.",
        fatal=True,
    ),
    Condition.WRONG_PROVIDER: _Meaning(
        AuthError,
        "Log out at https://app.globus.org/logout, then run "
        f"`{LOGIN}` with an identity of the provider it names.",
        fatal=True,
    ),
    Condition.DENIED: _Meaning(
        Permanent,
        f"A new login does not change that. `{_LIST}` lists the models you may use.",
        fatal=True,
    ),
    Condition.UNKNOWN_MODEL: _Meaning(Permanent, f"`{_LIST}` lists the models.", fatal=True),
    Condition.UNKNOWN_CLUSTER: _Meaning(Permanent, f"`{_LIST}` lists the clusters.", fatal=True),
    Condition.BAD_ROUTE: _Meaning(
        Permanent, f"`{_LIST}` lists each cluster's framework.", fatal=True
    ),
    Condition.BAD_FIELD: _Meaning(Permanent),
    Condition.TOO_MANY_REQUESTS: _Meaning(RateLimited),
    Condition.TOO_MANY_TOKENS: _Meaning(RateLimited),
    Condition.OFFLINE: _Meaning(Overloaded),
    Condition.NOT_READY: _Meaning(Starting),
    Condition.NOT_LIVE: _Meaning(Overloaded),
    Condition.MAINTENANCE: _Meaning(Overloaded),
    Condition.TIMED_OUT: _Meaning(
        Transient, "The gateway gives up after 300 s: lower max_tokens, if it was hot."
    ),
    Condition.UPSTREAM_TIMED_OUT: _Meaning(Transient, "A lower max_tokens takes less time."),
}


def error_of(
    response: WireResponse, *, endpoint: str, model: str, window_s: float, poll_s: float
) -> EndpointError:
    """Return what a response other than 200 means, as an error.

    Args:
        response: The response, `unwrapped`.
        endpoint: Name of the endpoint, for the error.
        model: The model that was asked.
        window_s: Seconds of a window that tokens are counted in.
        poll_s: Seconds between two looks at a model's state.
    """
    said = _said(response.body)
    condition = _condition(response.status, said)
    meaning = _MEANINGS.get(condition)
    if meaning is None:
        return error_from_response(response, endpoint=endpoint, model=model)
    words = f"HTTP {response.status} from {endpoint}: {said.message}"
    if condition is Condition.BAD_FIELD and (fields := _fields(said.info)):
        words += f" {fields}"
    after = said.retry_after
    if condition is Condition.TOO_MANY_TOKENS:
        after = after or window_s
    elif condition is Condition.TOO_MANY_REQUESTS:
        after = after or 1.0
    elif meaning.kind in (Overloaded, Starting):
        after = poll_s
    error = meaning.kind(
        words,
        hint=meaning.hint,
        endpoint=endpoint,
        status=response.status,
        retry_after=after,
        body=response.body[:_SHOWN].decode("utf-8", "replace"),
        fatal=meaning.fatal,
    )
    error.timed_out = condition in (Condition.TIMED_OUT, Condition.UPSTREAM_TIMED_OUT)
    return error


def unwrapped(response: WireResponse) -> WireResponse:
    """Return what the model's own server said, where the gateway passes that on as its own.

    Sophia's errors are all 500 with the number in their text.
    """
    if response.status == _OK:
        return response
    message = _said(response.body, whole=True).message
    found = _WRAPPED.search(message)
    if found is not None:
        return replace(response, status=int(found[1]), body=found[2].strip().encode())
    found = _UPSTREAM.search(message)
    if found is None:
        return response
    try:
        body = ast.literal_eval(found[2])
    except (ValueError, SyntaxError):
        return response
    return replace(response, status=int(found[1]), body=bytes(body))


def _said(body: bytes, *, whole: bool = False) -> _Said:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _Said(_text(body), "", {}, None)
    if not isinstance(data, dict):
        return _Said(_text(body), "", {}, None)
    error, detail = data.get("error"), data.get("detail")
    if isinstance(error, dict):
        message, code, info = error.get("message"), error.get("code"), error.get("info")
    elif isinstance(error, str):
        message, code, info = f"{error}. {data.get('message') or ''}".strip(), "", None
    else:
        message, code, info = detail or data.get("message"), "", None
    text = message if isinstance(message, str) else orjson.dumps(message).decode()
    known = info if isinstance(info, dict) else {}
    after = _seconds(data.get("retry_after"))
    return _Said(text if whole else text[:_SHOWN], str(code or ""), known, after)


def _fields(info: dict[str, Any]) -> str:
    errors = info.get("errors")
    if not isinstance(errors, list):
        return ""
    found = [
        f"{error.get('field')}: {error.get('message')}"
        for error in errors
        if isinstance(error, dict)
    ]
    return f"({'; '.join(found)})"


def _seconds(text: Any) -> float | None:
    if isinstance(text, int | float):
        return float(text)
    found = _SECONDS.search(text) if isinstance(text, str) else None
    if found is None:
        return None
    return float(found[1]) * (60 if found[2] == "minute" else 1)


def _text(body: bytes) -> str:
    return " ".join(body[:_SHOWN].decode("utf-8", "replace").split())
