from __future__ import annotations

import email.utils
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._completion import parse_completion
from scaleinfer.backends._dialect import error_from_response, error_from_wire
from scaleinfer.backends._rate_headers import retry_after
from scaleinfer.backends._wire import Failure, WireError, WireResponse
from scaleinfer.errors import (
    AuthError,
    EndpointError,
    Overloaded,
    Permanent,
    RateLimited,
    Starting,
    Transient,
)
from scaleinfer.results import Load, RateState, Usage

ENDPOINT = "http://node7:8000/v1"
NOW = 1_800_000_000.0


def respond(status: int, body: Any, **headers: str) -> WireResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return WireResponse(status, {k.replace("_", "-"): v for k, v in headers.items()}, data)


def judged(status: int, body: Any, *, model: str = "llama", **headers: str) -> EndpointError:
    return error_from_response(respond(status, body, **headers), endpoint=ENDPOINT, model=model)


def openai(message: str, code: str | None = None, kind: str = "invalid_request_error") -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def vllm(message: str, kind: str, code: int) -> Any:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


LLAMA_LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
LLAMA_LONG = {
    "error": {
        "code": 400,
        "message": "the request exceeds the available context size, try increasing it",
        "type": "exceed_context_size_error",
    }
}
PAGE = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head></html>"
VLLM_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000."
VLLM_LONG_NOW = "The decoder prompt (length 5000) is longer than the maximum model length of 4096."
SGLANG_LONG = "The input (5000 tokens) is longer than the model's context length (4096 tokens)."

CASES: list[tuple[int, Any, type[EndpointError], bool, str]] = [
    (400, openai("Invalid value for 'stop'."), Permanent, False, "Invalid value"),
    (400, openai("too long", "context_length_exceeded"), Permanent, False, "Shorten the prompt"),
    (400, vllm(VLLM_LONG, "BadRequestError", 400), Permanent, False, "Shorten the prompt"),
    (400, {"error": vllm(VLLM_LONG_NOW, "x", 400)}, Permanent, False, "Shorten the prompt"),
    (400, vllm(SGLANG_LONG, "BadRequestError", 400), Permanent, False, "Shorten the prompt"),
    (400, LLAMA_LONG, Permanent, False, "Shorten the prompt"),
    (413, b"", Permanent, False, "without a word of explanation"),
    (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, Permanent, False, "field"),
    (401, openai("Incorrect API key provided.", "invalid_api_key"), AuthError, True, "OPENAI_API"),
    (401, {"error": "Unauthorized"}, AuthError, True, "Unauthorized"),
    (403, {"detail": "Not authenticated"}, AuthError, False, "Not authenticated"),
    (404, openai("The model `llama` does not exist", "model_not_found"), Permanent, True, "model="),
    (
        404,
        vllm("The model `llama` does not exist.", "NotFoundError", 404),
        Permanent,
        True,
        "model=",
    ),
    (404, {"detail": "Not Found"}, Permanent, True, "ends in /v1"),
    (404, PAGE, Permanent, True, "ends in /v1"),
    (405, {"detail": "Method Not Allowed"}, Permanent, True, "ends in /v1"),
    (408, b"", Transient, False, "408"),
    (409, b"", Transient, False, "409"),
    (425, b"", Transient, False, "425"),
    (429, openai("Rate limit reached", "rate_limit_exceeded"), RateLimited, False, "Rate limit"),
    (429, openai("No credit", "insufficient_quota"), Permanent, True, "no credit"),
    (429, b"", RateLimited, False, "429"),
    (500, openai("The server had an error"), Transient, False, "had an error"),
    (500, b"Internal Server Error", Transient, False, "Internal Server Error"),
    (501, b"", Transient, False, "501"),
    (502, PAGE, Transient, False, "502 Bad Gateway"),
    (503, LLAMA_LOADING, Starting, False, "Loading model"),
    (503, openai("The engine is currently overloaded"), Overloaded, False, "overloaded"),
    (503, b"", Overloaded, False, "503"),
    (504, PAGE, Transient, False, "504"),
    (529, {"type": "error", "error": {"type": "overloaded_error"}}, Overloaded, False, "529"),
    (301, b"", Permanent, True, "redirects to nowhere"),
    (418, b'["list"]', Permanent, False, "list"),
    (500, b'"text"', Transient, False, "text"),
    (500, b'{"error": null}', Transient, False, "500"),
    (500, b'{"error": {"message": {"deep": 1}}}', Transient, False, "deep"),
    (500, b"\xff\xfe\x00", Transient, False, "500"),
]


@pytest.mark.parametrize(("status", "body", "kind", "fatal", "said"), CASES)
def test_what_a_response_means(
    status: int, body: Any, kind: type[EndpointError], fatal: bool, said: str
) -> None:
    error = judged(status, body)
    assert type(error) is kind
    assert error.fatal is fatal
    assert error.reached
    assert error.status == status
    assert error.endpoint == ENDPOINT
    assert said in str(error)
    assert ENDPOINT in str(error)
    assert len(str(error)) < 700


def test_redirect_names_its_target() -> None:
    error = judged(308, b"", location="https://node7/v1")
    assert "redirects to https://node7/v1" in error.message
    assert error.fatal


def test_a_redirect_to_a_login_is_named_as_one_without_its_secrets() -> None:
    error = judged(302, b"", location="https://me:CANARY@sso.campus.edu/login?state=CANARY")
    assert "redirects to https://sso.campus.edu/login (HTTP 302)" in error.message
    assert "login page" in error.hint
    assert "CANARY" not in str(error)
    assert "login page" not in judged(301, b"", location="https://node7/v1/designing").hint


def test_a_proxy_that_wants_a_login() -> None:
    error = judged(407, b"<html><head><title>Proxy login</title></head></html>")
    assert type(error) is Permanent
    assert error.fatal
    assert f"a proxy before {ENDPOINT} wants a login" in error.message
    assert "a web page titled 'Proxy login'" in error.message
    assert "HTTPS_PROXY" in error.hint


@pytest.mark.parametrize(("status", "kind"), [(407, Permanent), (502, Transient)])
def test_a_proxy_that_makes_no_connection(status: int, kind: type[EndpointError]) -> None:
    failed = WireError(Failure.CONNECT, f"the proxy answers HTTP {status}")
    error = error_from_wire(failed, endpoint=ENDPOINT)
    assert type(error) is kind
    assert error.fatal is (status == 407)
    assert not error.reached
    assert f"cannot connect to {ENDPOINT}: the proxy answers HTTP {status}" in error.message
    assert "HTTPS_PROXY" in error.hint


def test_where_a_client_stands_reaches_the_error_and_stays_out_of_its_json() -> None:
    error = judged(429, b"", x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="20s")
    assert error.rate == RateState(None, 0, 20.0)
    assert "rate" not in error.to_dict()
    assert pickle.loads(pickle.dumps(error)).rate == error.rate
    assert judged(429, b"").rate is None


def test_an_answer_carries_the_reports_of_its_headers() -> None:
    headers = {
        "endpoint-load-metrics": "TEXT kv_cache_usage_perc=0.5",
        "x-ratelimit-remaining-tokens": "9",
    }
    response = WireResponse(200, headers, json.dumps(chat()).encode())
    answer = parse_completion(response, endpoint=ENDPOINT, chat=True)
    assert answer.load == Load(0.5)
    assert answer.rate == RateState(remaining_tokens=9)
    bare = parsed(chat())
    assert (bare.load, bare.rate) == (None, None)


def test_a_prompts_own_words_are_not_taken_for_the_models_name() -> None:
    assert "ends in /v1" in judged(404, {"detail": "Not Found"}, model="").hint


@given(st.integers(201, 599), st.binary(max_size=300))
def test_any_response_becomes_one_error(status: int, body: bytes) -> None:
    error = judged(status, body)
    assert error.status == status
    assert len(error.body) <= 500


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": email.utils.formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": email.utils.formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Thu, 01 Jan 0001 00:00:00 -0000"}, 0.0),
    ],
)
def test_retry_after_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=NOW) == seconds


@given(st.text())
def test_any_retry_after_is_a_finite_wait_or_none(text: str) -> None:
    for name in ("retry-after", "retry-after-ms"):
        seconds = retry_after({name: text}, now=NOW)
        assert seconds is None or 0 <= seconds < float("inf")


def test_retry_after_reaches_the_error() -> None:
    assert judged(429, b"", retry_after="3").retry_after == 3.0
    assert judged(500, b"", retry_after_ms="250").retry_after == 0.25


@pytest.mark.parametrize(
    ("failure", "kind", "fatal", "reached"),
    [
        (Failure.CONNECT, Transient, False, False),
        (Failure.TLS, Permanent, True, False),
        (Failure.TIMEOUT, Transient, False, True),
        (Failure.BROKEN, Transient, False, True),
    ],
)
def test_what_no_response_means(
    failure: Failure, kind: type[EndpointError], fatal: bool, reached: bool
) -> None:
    error = error_from_wire(WireError(failure, "what it was"), endpoint=ENDPOINT)
    assert type(error) is kind
    assert (error.fatal, error.reached, error.status) == (fatal, reached, None)
    assert "what it was" in error.message
    assert ENDPOINT in error.message


def chat(**changes: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}}
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    body = {"model": "llama-3", "choices": [choice | {"finish_reason": "stop"}], "usage": usage}
    return body | changes


def message(content: Any, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **more}, "finish_reason": finish}


def parsed(body: Any, *, is_chat: bool = True) -> Any:
    return parse_completion(respond(200, body), endpoint=ENDPOINT, chat=is_chat)


def test_an_answer() -> None:
    answer = parsed(chat())
    assert answer.text == "yes"
    assert answer.finish_reason == "stop"
    assert answer.model == "llama-3"
    assert answer.usage == Usage(7, 1, 0, 1)
    assert (answer.choices, answer.tool_calls, answer.logprobs) == (None, None, None)


def test_several_choices_logprobs_and_tools() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    logprobs = {"content": [{"token": "yes", "logprob": -0.1}]}
    first = message("a") | {"logprobs": logprobs}
    answer = parsed(chat(choices=[first, message("b")]))
    assert answer.choices == ["a", "b"]
    assert answer.logprobs == logprobs
    answer = parsed(chat(choices=[message(None, "tool_calls", tool_calls=calls)]))
    assert (answer.text, answer.tool_calls) == ("", calls)


def test_plain_completion_parts_and_missing_usage() -> None:
    body = {"choices": [{"text": "upon a time", "finish_reason": "length"}]}
    answer = parsed(body, is_chat=False)
    assert (answer.text, answer.usage) == ("upon a time", Usage(requests=1))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parsed(chat(choices=[message(parts)])).text == "ab"
    cached = chat()["usage"] | {"prompt_tokens_details": {"cached_tokens": 5}}
    assert parsed(chat(usage=cached)).usage.cached_tokens == 5
    assert parsed(chat(usage={"prompt_tokens": None})).usage == Usage(requests=1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"<html>Please log in</html>",
        b"data: {}\n\n",
        b"null",
        b"[]",
        b"3",
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [{}]},
        {"choices": [None]},
        {"choices": ["text"]},
        {"choices": [{"message": "text"}]},
        {"choices": [message([None])]},
        {"choices": [message([{"text": None}])]},
        chat(usage=[1]),
        chat(usage={"prompt_tokens": "many"}),
        {"error": {"message": "Provider returned error", "code": 502}},
    ],
)
def test_two_hundred_without_an_answer_may_pass(body: Any) -> None:
    with pytest.raises(Transient, match="answered 200 with") as caught:
        parsed(body)
    assert caught.value.status == 200
    assert not caught.value.fatal


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "text", "usage", "x"]), inner
            )
        ),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_any_json_is_an_answer_or_one_error(body: Any, is_chat: bool) -> None:
    try:
        answer = parsed(body, is_chat=is_chat)
    except EndpointError:
        return
    assert isinstance(answer.text, str)


def test_why_a_web_page_came_is_said() -> None:
    with pytest.raises(Transient, match="a web page") as caught:
        parsed(b"\n <html><body>Sign in</body></html>")
    assert "base_url" in caught.value.hint


def test_all_tokens_spent_on_thinking() -> None:
    with pytest.raises(Permanent, match="used up max_tokens"):
        parsed(chat(choices=[message("", "length")]))
    assert parsed(chat(choices=[message("half", "length")])).finish_reason == "length"


def test_a_filtered_or_refused_answer_is_no_empty_success() -> None:
    with pytest.raises(Permanent, match="content filter"):
        parsed(chat(choices=[message(None, "content_filter")]))
    with pytest.raises(Permanent, match="I cannot help"):
        parsed(chat(choices=[message(None, refusal="I cannot help with that.")]))
