"""How OpenAI-compatible servers say what is wrong, and how they answer.

One place turns a status, headers and a body into one typed error: the engine never looks at a
status code. Sources: OpenAI's error codes (platform.openai.com/docs/guides/error-codes), and
what vLLM, SGLang, llama.cpp and LiteLLM send.
"""

from __future__ import annotations

import email.utils
import math
import time
from datetime import UTC
from typing import TYPE_CHECKING, Any

import orjson

from scaleinfer.backends._wire import Failure
from scaleinfer.errors import (
    AuthError,
    EndpointError,
    Overloaded,
    Permanent,
    RateLimited,
    Starting,
    Transient,
)
from scaleinfer.results import Completion, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaleinfer.backends._wire import WireError, WireResponse

__all__ = ["error_from_response", "error_from_wire", "parse_completion", "retry_after"]

_SHOWN = 300
_UNAUTHORIZED = 401


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the seconds a response asks us to wait, or None if it names none.

    Reads `retry-after-ms` (OpenAI, Azure) and `Retry-After` as seconds or as an HTTP date
    (RFC 9110, section 10.2.3).

    Args:
        headers: The response's headers.
        now: Unix time a date is compared with; the current time by default.
    """
    milliseconds = headers.get("retry-after-ms")
    if milliseconds is not None and (given := _number(milliseconds)) is not None:
        return given / 1000
    text = headers.get("retry-after")
    if text is None:
        return None
    if (given := _number(text)) is not None:
        return given
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, at.timestamp() - (time.time() if now is None else now))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def error_from_response(response: WireResponse, *, endpoint: str, model: str) -> EndpointError:
    """Return what a response other than 200 means."""
    message, code = _error_body(response.body)
    status = response.status
    build = _Builder(endpoint, status, response.body, retry_after(response.headers))
    said = f"HTTP {status} from {endpoint}: {message}" if message else f"HTTP {status}"
    if not message:
        said = f"{said} from {endpoint} without a word of explanation."
    specific = _specific(build, said, message=message, code=code, model=model)
    if specific is not None:
        return specific
    if 300 <= status < 400:  # noqa: PLR2004 - the redirects
        target = response.headers.get("location", "nowhere")
        return build(
            Permanent,
            f"{endpoint} redirects to {target}.",
            "Use the address it points to as base_url; calls with a body are not redirected.",
            fatal=True,
        )
    if status in {408, 409, 425} or status >= 500:  # noqa: PLR2004 - the server's own faults
        return build(Transient, said)
    return build(Permanent, said)


def _specific(  # noqa: PLR0911 - one return for each thing a server can mean
    build: _Builder, said: str, *, message: str, code: str, model: str
) -> EndpointError | None:
    lower = message.lower()
    match build.status:
        case 401 | 403:
            hint = "Check the key: api_key=, or OPENAI_API_KEY."
            # 403 may be about one prompt only, behind a filter; a bad key is 401 everywhere.
            return build(AuthError, said, hint, fatal=build.status == _UNAUTHORIZED)
        case 404 if (model and model.lower() in lower) or "model" in code:
            hint = "`scaleinfer endpoints` lists the models it offers; pass one as model=."
            return build(Permanent, said, hint, fatal=True)
        case 404 | 405:
            hint = "Check base_url: it usually ends in /v1."
            return build(Permanent, said, hint, fatal=True)
        case 429 if code == "insufficient_quota":
            hint = "The account has no credit left; retrying would not help."
            return build(Permanent, said, hint, fatal=True)
        case 429:
            return build(RateLimited, said)
        case 503 if "loading" in lower or "starting" in lower:
            return build(Starting, said)
        case 503 | 529:
            return build(Overloaded, said)
        case 400 | 413 | 422 if _too_long(lower, code):
            hint = "Shorten the prompt, lower max_tokens, or use a model with a longer context."
            return build(Permanent, said, hint)
    return None


def error_from_wire(error: WireError, *, endpoint: str) -> EndpointError:
    """Return what a call without a response means."""
    match error.failure:
        case Failure.CONNECT:
            return Transient(
                f"cannot connect to {endpoint}: {error}.",
                hint="Is the server up, and is base_url right?",
                endpoint=endpoint,
                reached=False,
            )
        case Failure.TLS:
            return Permanent(
                f"{endpoint} has a certificate that is not trusted: {error}.",
                hint="Name your own authority's certificates in SSL_CERT_FILE.",
                endpoint=endpoint,
                fatal=True,
                reached=False,
            )
        case Failure.TIMEOUT:
            return Transient(
                f"{endpoint} gave {error}.", hint="Raise Retry(timeout=).", endpoint=endpoint
            )
        case Failure.BROKEN:
            return Transient(f"the connection to {endpoint} broke: {error}.", endpoint=endpoint)


def parse_completion(response: WireResponse, *, endpoint: str, chat: bool) -> Completion:
    """Return the answer in a 200 response.

    Raises:
        EndpointError: The body is no completion.
    """
    try:
        body = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        raise _not_json(response, endpoint) from None
    try:
        choices = body["choices"]
        texts = [_text(choice, chat=chat) for choice in choices]
        first = choices[0]
        message = first.get("message") or {}
        completion = Completion(
            text=texts[0],
            finish_reason=first.get("finish_reason"),
            usage=_usage(body.get("usage")),
            model=body.get("model"),
            choices=texts if len(texts) > 1 else None,
            tool_calls=message.get("tool_calls") or None,
            logprobs=first.get("logprobs"),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        message, _ = _error_body(response.body)
        raise Transient(
            f"{endpoint} answered 200 without a completion: {message or _excerpt(response.body)}",
            endpoint=endpoint,
            status=response.status,
            body=_excerpt(response.body),
        ) from None
    if completion.text or completion.tool_calls:
        return completion
    refusal = message.get("refusal")
    if refusal or completion.finish_reason == "content_filter":
        why = (
            f"the model refused: {refusal}" if refusal else "a content filter withheld the answer."
        )
        raise Permanent(why, endpoint=endpoint, status=response.status)
    if completion.finish_reason == "length":
        raise Permanent(
            "the model used up max_tokens before it began its answer.",
            hint="Raise max_tokens; a reasoning model spends it on thinking first.",
            endpoint=endpoint,
            status=response.status,
        )
    return completion


def _text(choice: dict[str, Any], *, chat: bool) -> str:
    content = choice["message"].get("content") if chat else choice["text"]
    if content is None or isinstance(content, str):
        return content or ""
    # Some servers send content as parts.
    return "".join(part.get("text", "") for part in content)


def _usage(usage: dict[str, Any] | None) -> Usage:
    if not usage:
        return Usage(requests=1)
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        int(details.get("cached_tokens") or 0),
        1,
    )


class _Builder:
    """Fills in what every error of one response has in common."""

    def __init__(self, endpoint: str, status: int, body: bytes, after: float | None) -> None:
        self._endpoint = endpoint
        self.status = status
        self._body = _excerpt(body)
        self._after = after

    def __call__(
        self, kind: type[EndpointError], message: str, hint: str = "", *, fatal: bool = False
    ) -> EndpointError:
        return kind(
            message,
            hint=hint,
            endpoint=self._endpoint,
            status=self.status,
            retry_after=self._after,
            body=self._body,
            fatal=fatal,
        )


def _not_json(response: WireResponse, endpoint: str) -> EndpointError:
    page = response.body.lstrip()[:1] == b"<"
    what = "a web page" if page else "something that is not JSON"
    return Transient(
        f"{endpoint} answered 200 with {what}: {_excerpt(response.body)}",
        hint="A login page or a wrong base_url looks like that." if page else "",
        endpoint=endpoint,
        status=response.status,
        body=_excerpt(response.body),
    )


def _error_body(body: bytes) -> tuple[str, str]:
    """Return message and code of an error body in any of the shapes servers use."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _excerpt(body), ""
    if not isinstance(data, dict):
        return _excerpt(body), ""
    error = data.get("error", data)
    if not isinstance(error, dict):
        return str(error)[:_SHOWN], ""
    message = error.get("message") or error.get("detail") or ""
    code = error.get("code") or error.get("type") or ""
    return str(message)[:_SHOWN], str(code)


def _excerpt(body: bytes) -> str:
    return " ".join(body[:_SHOWN].decode("utf-8", "replace").split())


def _too_long(lower: str, code: str) -> bool:
    return (
        code == "context_length_exceeded"
        or "context length" in lower
        or "context window" in lower
        or "maximum model length" in lower
        or ("context size" in lower and "exceed" in lower)
        or "prompt is too long" in lower
    )
