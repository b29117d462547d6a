"""How OpenAI-compatible servers say what is wrong.

One place turns a status, headers and a body into one typed error: the engine never looks at a
status code. Sources: OpenAI's error codes (platform.openai.com/docs/guides/error-codes), and
what vLLM, SGLang, llama.cpp and LiteLLM send.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import orjson

from scaleinfer.backends._rate_headers import rate_state, retry_after
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

if TYPE_CHECKING:
    from scaleinfer.backends._wire import WireError, WireResponse
    from scaleinfer.results import RateState

__all__ = [
    "error_from_response",
    "error_from_wire",
    "error_in_answer",
    "explained",
    "not_json",
    "refuses_schemas",
]

_SHOWN = 300
_PAGE_HEAD = 4096
_UNAUTHORIZED = 401
_NOT_IMPLEMENTED = 501
_LOGIN = re.compile(
    r"(?<![a-z])(?:(?:log|sign)[-_]?(?:in|on)|sso|saml|oauth2?|auth)(?![a-z])", re.IGNORECASE
)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def error_from_response(response: WireResponse, *, endpoint: str, model: str) -> EndpointError:
    """Return what a response other than 200 means."""
    message, code = _error_body(response.body)
    status = response.status
    headers = response.headers
    build = _Builder(endpoint, status, response.body, retry_after(headers), rate_state(headers))
    said = f"HTTP {status} from {endpoint}: {message}" if message else f"HTTP {status}"
    if not message:
        said = f"{said} from {endpoint} without a word of explanation."
    specific = _specific(build, said, message=message, code=code, model=model)
    if specific is not None:
        return specific
    if status == _NOT_IMPLEMENTED and message:
        return build(Permanent, said, "The server was not started for that.", fatal=True)
    if 300 <= status < 400:  # noqa: PLR2004 - the redirects
        return _redirect(build, headers.get("location"), endpoint)
    if status in {408, 409, 425} or status >= 500:  # noqa: PLR2004 - the server's own faults
        return build(Transient, said)
    return build(Permanent, said)


def _redirect(build: _Builder, location: str | None, endpoint: str) -> EndpointError:
    # What follows the path may be a login's secret state.
    target = re.split(r"[?#]", location, maxsplit=1)[0] if location else "nowhere"
    scheme, slashes, rest = target.partition("//")
    host, _, path = rest.partition("/")
    if slashes and "@" in host:
        target = f"{scheme}//{host.rpartition('@')[2]}/{path}"
    said = f"{endpoint} redirects to {target[:_SHOWN]} (HTTP {build.status})."
    hint = "Use the address it points to as base_url; calls with a body are not redirected."
    if _LOGIN.search(target):
        hint = (
            "That is a login page: a proxy or gateway wants you to sign in first. Reach the "
            "server another way, or name its host in NO_PROXY."
        )
    return build(Permanent, said, hint, fatal=True)


def _specific(  # noqa: PLR0911 - one return for each thing a server can mean
    build: _Builder, said: str, *, message: str, code: str, model: str
) -> EndpointError | None:
    lower = message.lower()
    if _no_money(build.status, lower, code):
        hint = "The account or key has no credit left; retrying would not help."
        return build(Permanent, said, hint, fatal=True)
    match build.status:
        case 403 if "moderation" in lower or "flagged" in lower:
            return build(Permanent, said, "The gateway will not pass this prompt on.")
        case 401 | 403:
            hint = "Check the key: api_key=, or OPENAI_API_KEY."
            # 403 may be about one prompt only, behind a filter; a bad key is 401 everywhere.
            return build(AuthError, said, hint, fatal=build.status == _UNAUTHORIZED)
        case 404 if "deployment" in code.lower():
            hint = "On Azure the model is the name of your deployment."
            return build(Permanent, said, hint, fatal=True)
        case 400 | 404 if _no_such_model(build.status, lower, code, model):
            hint = "`scaleinfer endpoints` lists the models it offers; pass one as model=."
            return build(Permanent, said, hint, fatal=True)
        case 404 | 405:
            hint = "Check base_url: it usually ends in /v1."
            return build(Permanent, said, hint, fatal=True)
        case 407:
            hint = "Put a user and password into HTTPS_PROXY, or name the host in NO_PROXY."
            said = f"a proxy before {build.endpoint} wants a login. It said: {said}"
            return build(Permanent, said, hint, fatal=True)
        case 429:
            return build(RateLimited, said)
        case 503 if "loading" in lower or "starting" in lower:
            return build(Starting, said)
        case 503 | 529:
            return build(Overloaded, said)
        case 400 | 413 | 422 | 500 if _too_long(lower, code):
            hint = "Shorten the prompt, lower max_tokens, or use a model with a longer context."
            return build(Permanent, said, hint)
    return None


def error_from_wire(error: WireError, *, endpoint: str) -> EndpointError:
    """Return what a call without a response means."""
    match error.failure:
        case Failure.CONNECT if "proxy" in str(error):
            # A proxy that wants a login will go on wanting it.
            fatal = "HTTP 407" in str(error)
            return (Permanent if fatal else Transient)(
                f"cannot connect to {endpoint}: {error}.",
                hint="Look at HTTPS_PROXY and its user and password, or name the host in NO_PROXY.",
                endpoint=endpoint,
                fatal=fatal,
                reached=False,
            )
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
            late = Transient(
                f"{endpoint} gave {error}.", hint="Raise Retry(timeout=).", endpoint=endpoint
            )
            late.timed_out = True
            return late
        case Failure.BROKEN:
            return Transient(f"the connection to {endpoint} broke: {error}.", endpoint=endpoint)


class _Builder:
    """Fills in what every error of one response has in common."""

    def __init__(
        self, endpoint: str, status: int, body: bytes, after: float | None, rate: RateState | None
    ) -> None:
        self.endpoint = endpoint
        self.status = status
        self._rate = rate
        self._body = _excerpt(body)
        self._after = after

    def __call__(
        self, kind: type[EndpointError], message: str, hint: str = "", *, fatal: bool = False
    ) -> EndpointError:
        error = kind(
            message,
            hint=hint,
            endpoint=self.endpoint,
            status=self.status,
            retry_after=self._after,
            body=self._body,
            fatal=fatal,
        )
        error.rate = self._rate
        return error


def refuses_schemas(response: WireResponse) -> bool:
    """True if a refused request was refused for the JSON schema it asked for."""
    if response.status not in {400, 422}:
        return False
    said = response.body.lower()
    return b"response_format" in said or b"json_schema" in said


def not_json(response: WireResponse, endpoint: str) -> EndpointError:
    """Return what a 200 response means whose body is not JSON."""
    page = _is_page(response.body)
    what = _title(response.body)
    if not what:
        what = f"{'a web page' if page else 'something that is not JSON'}: "
        what += _excerpt(response.body)
    return Transient(
        f"{endpoint} answered 200 with {what}",
        hint="A login page or a wrong base_url looks like that." if page else "",
        endpoint=endpoint,
        status=response.status,
        body=_excerpt(response.body),
    )


def explained(
    kind: type[EndpointError], what: str, response: WireResponse, endpoint: str
) -> EndpointError:
    """Return an error that says `what` the endpoint did, and shows what it sent."""
    message, _ = _error_body(response.body)
    return kind(
        f"{endpoint} {what}: {message or _excerpt(response.body)}",
        endpoint=endpoint,
        status=response.status,
        body=_excerpt(response.body),
    )


def _error_body(body: bytes) -> tuple[str, str]:
    """Return message and code of an error body in any of the shapes servers use."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _title(body) or _excerpt(body), ""
    if not isinstance(data, dict):
        return _excerpt(body), ""
    error = data.get("error", data)
    if not isinstance(error, dict):
        return str(error)[:_SHOWN], ""
    message = error.get("message") or error.get("detail") or ""
    code = str(error.get("code") or "")
    if not code or code.isdigit() or code == "None":
        # Many servers repeat the status there; the type then says more.
        code = str(error.get("type") or "")
    return str(message)[:_SHOWN], code


def _is_page(body: bytes) -> bool:
    return body[:_SHOWN].lstrip()[:1] == b"<"


def _title(body: bytes) -> str:
    """Return what a web page calls itself; its beginning is markup."""
    if not _is_page(body):
        return ""
    found = _TITLE.search(body[:_PAGE_HEAD].decode("utf-8", "replace"))
    title = " ".join(found[1].split())[:_SHOWN] if found else ""
    return f"a web page titled '{title}'" if title else ""


def _excerpt(body: bytes) -> str:
    return " ".join(body[:_SHOWN].decode("utf-8", "replace").split())


def error_in_answer(response: WireResponse, endpoint: str) -> EndpointError | None:
    """Return the error that came with status 200, if one did, as OpenRouter sends them.

    A provider that fails once the model has begun is reported in the body, as a whole or in
    place of the first choice.
    """
    try:
        body = orjson.loads(response.body)
        error = body.get("error") or body["choices"][0].get("error")
        code = int(error["code"])
    except (orjson.JSONDecodeError, AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None
    if not 400 <= code < 600:  # noqa: PLR2004 - the errors
        return None
    data = orjson.dumps({"error": error})
    meant = type(response)(code, response.headers, data)
    found = error_from_response(meant, endpoint=endpoint, model=str(body.get("model") or ""))
    found.message = f"{endpoint} answered 200 with an error in it. {found.message}"
    found.status = response.status
    return found


def _no_money(status: int, lower: str, code: str) -> bool:
    """Return whether a budget is spent: OpenAI's, OpenRouter's (402), a LiteLLM key's."""
    if status == 402 or code == "insufficient_quota":  # noqa: PLR2004 - payment required
        return True
    return status in {400, 401, 429} and (
        code == "budget_exceeded"
        or lower.startswith("exceededbudget")
        or "budget has been exceeded" in lower
    )


def _no_such_model(status: int, lower: str, code: str, model: str) -> bool:
    if status == 404:  # noqa: PLR2004 - not found
        return bool(model and model.lower() in lower) or "model" in code
    return "invalid model name" in lower or code == "model_not_found"


def _too_long(lower: str, code: str) -> bool:
    return (
        code in {"context_length_exceeded", "exceed_context_size_error"}
        or "context length" in lower
        or "context window" in lower
        or "maximum model length" in lower
        or ("context size" in lower and "exceed" in lower)
        or "prompt is too long" in lower
    )
