from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest

from scaleinfer.testing import RequestView
from scaleinfer.testing._answers import Envelope, answer, body_of, events_of, usage_of
from scaleinfer.testing._refusals import Refusal
from scaleinfer.testing._settings import Settings
from scaleinfer.testing._view import count_tokens

if TYPE_CHECKING:
    from scaleinfer.testing._answers import Choice

SCHEMA = {"type": "object", "properties": {"soluble": {"type": "boolean"}}, "required": ["soluble"]}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def view(prompt: str = "Is it soluble?", **body: Any) -> RequestView:
    body = {"messages": [{"role": "user", "content": prompt}], **body}
    return RequestView("/v1/chat/completions", body, (prompt,))


def said(view: RequestView, **settings: Any) -> list[str]:
    return [choice.text for choice in answer(view, Settings(**settings))]


def envelope(view: RequestView, choices: list[Choice]) -> Envelope:
    return Envelope(7, 1, "m", usage_of(view, choices))


def body(view: RequestView, choices: list[Choice] | None = None) -> dict[str, Any]:
    choices = answer(view, Settings()) if choices is None else choices
    return body_of(envelope(view, choices), choices, view)


def test_the_default_answer_echoes_the_prompt() -> None:
    assert said(view()) == ["echo: Is it soluble?"]


def test_n_gives_different_choices() -> None:
    assert said(view(n=3)) == [
        "echo: Is it soluble?", "echo 1: Is it soluble?", "echo 2: Is it soluble?",
    ]  # fmt: skip


def test_several_prompts_are_answered_in_order() -> None:
    packed = RequestView("/v1/completions", {"prompt": ["a", "b"]}, ("a", "b"))
    assert said(packed) == ["echo: a", "echo 1: b"]


@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_answer_tokens_is_the_length(tokens: int) -> None:
    (text,) = said(view(), answer_tokens=tokens)
    assert count_tokens(text) == tokens


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_cuts(field: str) -> None:
    (choice,) = answer(view(**cast("dict[str, Any]", {field: 2})), Settings())
    assert choice.text == "echo: Is"
    assert choice.finish_reason == "length"


def test_a_scripted_text() -> None:
    assert said(view(), answer=lambda v: v.text.upper()) == ["IS IT SOLUBLE?"]


def test_none_from_a_script_means_the_default() -> None:
    assert said(view(), answer=lambda _: None) == ["echo: Is it soluble?"]


def test_a_scripted_message_with_tool_calls() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    (choice,) = answer(view(max_tokens=1), Settings(answer=lambda _: {"tool_calls": calls}))
    made = body(view(), [choice])["choices"][0]
    assert made["message"] == {
        "role": "assistant", "content": None, "tool_calls": calls,
    }  # fmt: skip
    assert made["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": FORM},
        {"structured_outputs": {"json": SCHEMA}},
        {"guided_json": SCHEMA},
        {"guided_json": orjson.dumps(SCHEMA).decode()},
    ],
)
def test_a_schema_is_satisfied(asked: dict[str, Any]) -> None:
    (text,) = said(view(**asked))
    assert isinstance(orjson.loads(text)["soluble"], bool)


def test_another_attempt_gives_other_json() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    first, again, second = view(response_format=form), view(response_format=form), view("x")
    second.attempt = 2
    second.body["response_format"] = form
    assert said(first) == said(again)
    assert said(first) != said(second)


def test_json_mode_gives_an_object() -> None:
    (text,) = said(view(response_format={"type": "json_object"}))
    assert orjson.loads(text) == {"echo": "Is it soluble?"}


@pytest.mark.parametrize("off", [False, "refuse"])
def test_a_server_without_schemas_refuses(off: Any) -> None:
    with pytest.raises(Refusal) as caught:
        said(view(response_format=FORM), json_schema=off)
    assert (caught.value.status, caught.value.param) == (400, "response_format")
    assert said(view(), json_schema=off) == ["echo: Is it soluble?"]


def test_a_server_that_ignores_schemas() -> None:
    assert said(view(response_format=FORM), json_schema="ignore") == ["echo: Is it soluble?"]


@pytest.mark.parametrize(
    "schema", [{"type": "string", "pattern": "a"}, {"type": ["x"]}, {"enum": 3}]
)
def test_a_schema_beyond_the_generator_is_refused(schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    with pytest.raises(Refusal) as caught:
        said(view(response_format=form))
    assert caught.value.status == 400


def test_the_body_has_the_shape_of_a_chat_completion() -> None:
    assert body(view()) == {
        "id": "chatcmpl-sim7",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "echo: Is it soluble?"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9},
    }


def test_logprobs_of_a_chat() -> None:
    asking = view(logprobs=True, top_logprobs=2)
    choice = body(asking)["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == "echo: Is it soluble?"
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in content)


def test_logprobs_of_a_plain_completion() -> None:
    asking = RequestView("/v1/completions", {"prompt": "a", "logprobs": 1}, ("a",))
    choice = body(asking)["choices"][0]
    assert choice["text"] == "echo: a"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["echo", ": a"]
    assert logprobs["text_offset"] == [0, 4]


@pytest.mark.parametrize("n", [1, 2])
def test_chat_events_put_the_answer_together(n: int) -> None:
    asking = view(stream=True, n=n, stream_options={"include_usage": True})
    choices = answer(asking, Settings())
    texts = [""] * n
    finished: dict[int, str] = {}
    *events, usage = events_of(envelope(asking, choices), choices, asking)
    for event in events:
        (part,) = event["choices"]
        texts[part["index"]] += part["delta"].get("content", "")
        if part["finish_reason"]:
            finished[part["index"]] = part["finish_reason"]
    assert texts == [choice.text for choice in choices]
    assert finished == dict.fromkeys(range(n), "stop")
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 4


def test_plain_events_put_the_answer_together() -> None:
    asking = RequestView("/v1/completions", {"prompt": "a", "stream": True}, ("a",))
    choices = answer(asking, Settings())
    events = list(events_of(envelope(asking, choices), choices, asking))
    assert "".join(event["choices"][0]["text"] for event in events) == "echo: a"
    assert "usage" not in events[-1]
