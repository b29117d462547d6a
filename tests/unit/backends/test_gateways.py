"""What gateways send that OpenAI does not: bodies as their documentation and sources have them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scaleinfer import OpenAIBackend
from scaleinfer.backends._completion import parse_completion
from scaleinfer.backends._dialect import error_from_response
from scaleinfer.backends._models import lists_deployments, offers, other_list, parse_models
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

ENDPOINT = "https://gateway.example.org/v1"


def response(status: int, body: Any, **headers: str) -> WireResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return WireResponse(status, {k.replace("_", "-"): v for k, v in headers.items()}, data)


def error(message: str, kind: str | None = None, code: Any = None, **more: Any) -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


AZURE_FILTER = {
    "error": {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content "
        "management policy. Please modify your prompt and retry.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {"violence": {"filtered": True, "severity": "medium"}},
        },
    }
}
AZURE_LATER = error(
    "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-10-21 "
    "have exceeded call rate limit of your current OpenAI S0 pricing tier. Please retry after 6 "
    "seconds.",
    code="429",
)
AZURE_DEPLOYMENT = {
    "error": {
        "code": "DeploymentNotFound",
        "message": "The API deployment for this resource does not exist.",
    }
}
AZURE_KEY = {
    "error": {
        "code": "401",
        "message": "Access denied due to invalid subscription key or wrong API endpoint.",
    }
}
LITELLM_BUDGET = error(
    "Budget has been exceeded! Current cost: 26.075, Max budget: 0.25", "budget_exceeded", "400"
)
LITELLM_END_USER = error(
    "ExceededBudget: End User=lab over budget. Spend=0.0008, Budget=0.0001", "auth_error", 401
)
LITELLM_NO_DEPLOYMENT = error(
    "No deployments available for selected model, Try again in 5 seconds.", None, "429"
)
LITELLM_MODEL = error(
    "/chat/completions: Invalid model name passed in model=gpt-x. Call `/v1/models` to view "
    "available models for your key.",
    "invalid_request_error",
    "400",
)
LITELLM_KEY = error("Authentication Error, Invalid proxy server token passed.", "auth_error", "401")
LITELLM_LONG = error(
    "litellm.ContextWindowExceededError: litellm.BadRequestError: this model's maximum context "
    "length is 8192 tokens.",
    None,
    "400",
)
OPENROUTER_CREDITS = {"error": {"code": 402, "message": "Insufficient credits. Add more using ..."}}
OPENROUTER_FLAGGED = {
    "error": {
        "code": 403,
        "message": "x/y requires moderation. Your input was flagged for: harassment.",
        "metadata": {"reasons": ["harassment"], "provider_name": "OpenAI"},
    }
}
OPENROUTER_DOWN = {
    "error": {"code": 502, "message": "Provider returned error", "metadata": {"raw": "boom"}}
}
OPENROUTER_NOBODY = {
    "error": {"code": 503, "message": "No available model provider meets your routing requirements"}
}
OLLAMA_MODEL = error('model "llama9" not found, try pulling it first', "not_found_error")
OLLAMA_BUSY = error(
    "server busy, please try again.  maximum pending requests exceeded", "api_error"
)
OLLAMA_CLOUD = {"error": "Server overloaded, please retry shortly (ref: 06d81c91)"}
LLAMA_LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
LLAMA_LONG = {
    "error": {
        "code": 500,
        "message": "the request exceeds the available context size. try increasing the context "
        "size or enable context shift",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 1407,
        "n_ctx": 256,
    }
}
LLAMA_NO_EMBEDDINGS = {
    "error": {
        "code": 501,
        "message": "This server does not support embeddings. Start it with `--embeddings`",
        "type": "not_supported_error",
    }
}
LLAMA_KEY = {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}}
SGLANG_LONG = {
    "object": "error",
    "message": "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}
AITTA_KEY = {"detail": "Could not validate credentials"}

CASES: list[tuple[str, int, Any, type[EndpointError], bool, str]] = [
    ("azure", 400, AZURE_FILTER, Permanent, False, "content management policy"),
    ("azure", 429, AZURE_LATER, RateLimited, False, "retry after 6"),
    ("azure", 404, AZURE_DEPLOYMENT, Permanent, True, "name of your deployment"),
    ("azure", 401, AZURE_KEY, AuthError, True, "subscription key"),
    ("azure", 401, {"statusCode": 401, "message": "Unauthorized."}, AuthError, True, "Unauthor"),
    ("litellm", 400, LITELLM_BUDGET, Permanent, True, "no credit left"),
    ("litellm", 429, LITELLM_BUDGET, Permanent, True, "no credit left"),
    ("litellm", 401, LITELLM_END_USER, Permanent, True, "no credit left"),
    ("litellm", 429, LITELLM_NO_DEPLOYMENT, RateLimited, False, "No deployments"),
    ("litellm", 400, LITELLM_MODEL, Permanent, True, "model="),
    ("litellm", 401, LITELLM_KEY, AuthError, True, "proxy server token"),
    ("litellm", 400, LITELLM_LONG, Permanent, False, "Shorten the prompt"),
    ("openrouter", 402, OPENROUTER_CREDITS, Permanent, True, "no credit left"),
    ("openrouter", 403, OPENROUTER_FLAGGED, Permanent, False, "harassment"),
    ("openrouter", 502, OPENROUTER_DOWN, Transient, False, "Provider returned error"),
    ("openrouter", 503, OPENROUTER_NOBODY, Overloaded, False, "routing"),
    ("ollama", 404, OLLAMA_MODEL, Permanent, True, "model="),
    ("ollama", 503, OLLAMA_BUSY, Overloaded, False, "maximum pending"),
    ("ollama", 503, OLLAMA_CLOUD, Overloaded, False, "retry shortly"),
    ("llama.cpp", 503, LLAMA_LOADING, Starting, False, "Loading"),
    ("llama.cpp", 500, LLAMA_LONG, Permanent, False, "Shorten the prompt"),
    ("llama.cpp", 501, LLAMA_NO_EMBEDDINGS, Permanent, True, "--embeddings"),
    ("llama.cpp", 401, LLAMA_KEY, AuthError, True, "Invalid API Key"),
    ("sglang", 400, SGLANG_LONG, Permanent, False, "Shorten the prompt"),
    ("aitta", 401, AITTA_KEY, AuthError, True, "validate credentials"),
    ("aitta", 429, b"Too many requests", RateLimited, False, "Too many"),
]


@pytest.mark.parametrize(
    ("status", "body", "kind", "fatal", "said"),
    [case[1:] for case in CASES],
    ids=[f"{case[0]}-{case[1]}-{number}" for number, case in enumerate(CASES)],
)
def test_what_their_errors_mean(
    status: int, body: Any, kind: type[EndpointError], fatal: bool, said: str
) -> None:
    meant = error_from_response(response(status, body), endpoint=ENDPOINT, model="llama9")
    assert type(meant) is kind
    assert meant.fatal is fatal
    assert said in str(meant)


@pytest.mark.parametrize(
    ("code", "kind", "fatal"),
    [(429, RateLimited, False), (502, Transient, False), (503, Overloaded, False),
     (402, Permanent, True), (400, Permanent, False)],
)  # fmt: skip
def test_an_error_that_comes_with_status_200(
    code: int, kind: type[EndpointError], fatal: bool
) -> None:
    said = {"code": code, "message": "Provider returned error", "metadata": {"raw": "x"}}
    cut = {"message": {"content": "The begin"}, "finish_reason": "error", "error": said}
    for body in ({"error": said, "user_id": "u"}, {"choices": [cut], "model": "m"}):
        with pytest.raises(EndpointError) as caught:
            parse_completion(response(200, body), endpoint=ENDPOINT, chat=True)
        assert type(caught.value) is kind
        assert caught.value.fatal is fatal
        assert "answered 200 with an error in it" in str(caught.value)


def test_an_answer_after_the_blanks_that_keep_a_connection_alive() -> None:
    body = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    data = b"\n         \n" + json.dumps(body).encode()
    assert parse_completion(response(200, data), endpoint=ENDPOINT, chat=True).text == "yes"


AITTA_MODELS = {
    "_links": {
        "item": [
            {"href": "/model/LumiOpen~Poro", "name": "LumiOpen/Poro"},
            {"href": "/model/openai~gpt-oss-120b", "name": "openai/gpt-oss-120b"},
        ],
        "self": {"href": "/model", "name": "self"},
    }
}
LLAMA_MODELS = {
    "models": [{"name": "model.gguf", "model": "model.gguf"}],
    "object": "list",
    "data": [{"id": "model.gguf", "object": "model", "owned_by": "llamacpp"}],
}
MODELS: list[tuple[Any, list[str]]] = [
    ({"object": "list", "data": [{"id": "m", "object": "model"}]}, ["m"]),
    ({"object": "list", "data": []}, []),
    (AITTA_MODELS, ["LumiOpen/Poro", "openai/gpt-oss-120b"]),
    ({"_links": {"item": {"href": "/model/a", "name": "a"}}}, ["a"]),
    (LLAMA_MODELS, ["model.gguf"]),
    ({"models": [{"name": "llama3:latest", "model": "llama3:latest"}]}, ["llama3:latest"]),
    ([{"id": "together/m", "type": "chat"}], ["together/m"]),
]


@pytest.mark.parametrize(("body", "names"), MODELS)
def test_lists_of_models(body: Any, names: list[str]) -> None:
    assert parse_models(json.dumps(body).encode()) == names


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"3", b'{"a": 1}', b'{"data": [1]}', b"null"])
def test_what_is_no_list_of_models(body: bytes) -> None:
    with pytest.raises(ValueError, match="no list"):
        parse_models(body)


def test_a_model_that_is_offered_under_another_name() -> None:
    assert offers(["llama3:latest"], "llama3")
    assert offers(["x/y", "x/y:free"], "x/y:nitro")
    assert offers(["openai/*"], "openai/gpt-5")
    assert not offers(["llama3:8b"], "llama3")
    assert not offers(["openai/*"], "mistral/x")
    assert not offers(["m"], "")


def test_where_models_are_listed() -> None:
    assert other_list("https://aitta-api.csc.fi/openai/v1") == "https://aitta-api.csc.fi/model"
    assert other_list("http://127.0.0.1:8000/v1") is None
    assert not lists_deployments("https://lab.openai.azure.com/openai/v1")
    assert lists_deployments("https://openrouter.ai/api/v1")


def test_azures_key_goes_into_its_own_header() -> None:
    backend = OpenAIBackend(
        "https://lab.openai.azure.com/openai/v1",
        model="my-deployment",
        api_key="",
        headers={"api-key": "secret-key-of-azure"},
    )
    assert "Authorization" not in backend._headers
    said = error("Access denied for key secret-key-of-azure")
    refused = backend.refusal(response(401, said), "my-deployment")
    assert isinstance(refused, AuthError)
    assert "secret-key-of-azure" not in str(refused) + refused.body
