"""Requests in the embedded engine's terms."""

from __future__ import annotations

from typing import Any

import pytest

from scaleinfer.backends._local_sampling import flatten_messages, plan_request
from scaleinfer.errors import Permanent
from scaleinfer.requests import Request, Sampling


def _request(**sampling: Any) -> Request:
    return Request(messages=[{"role": "user", "content": "Hi"}], sampling=Sampling(**sampling))


def test_defaults_are_greedy_and_capped() -> None:
    plan = plan_request(_request(), max_tokens=9)
    assert (plan.max_tokens, plan.n, plan.grammar, plan.logprobs) == (9, 1, None, False)
    assert plan.options == {"do_sample": False}


def test_sampling_parameters_reach_the_engine() -> None:
    request = _request(
        temperature=0.5, top_p=0.9, seed=7, n=3, stop="x", max_tokens=5, logprobs=True,
        extra={"top_k": 4, "min_p": 0.1, "presence_penalty": 1, "ignore_eos": True, "other": 1},
    )  # fmt: skip
    plan = plan_request(request, max_tokens=9)
    assert (plan.max_tokens, plan.n, plan.seed, plan.stop) == (5, 3, 7, ("x",))
    assert plan.options == {
        "do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1,
        "presence_penalty": 1.0, "ignore_eos": True, "logprobs": 1, "stop_strings": {"x"},
        "include_stop_str_in_output": True,
    }  # fmt: skip


def test_seeds_differ_when_none_is_asked_for() -> None:
    seeds = {plan_request(_request(temperature=1), max_tokens=1).seed for _ in range(8)}
    assert len(seeds) > 1


def test_top_k_off_is_off() -> None:
    plan = plan_request(_request(temperature=1, extra={"top_k": -1}), max_tokens=1)
    assert "top_k" not in plan.options


def test_response_format_is_a_schema() -> None:
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "boolean"}}}
    plan = plan_request(_request(extra={"response_format": form}), max_tokens=1)
    assert plan.grammar == 'root ::= ("true" | "false")\n'
    text = _request(extra={"response_format": {"type": "text"}})
    assert plan_request(text, max_tokens=1).grammar is None


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"n": 65}, "n is 65"),
        ({"top_p": 2.0, "temperature": 1}, "top_p"),
        ({"top_logprobs": 2, "logprobs": True}, "top_logprobs"),
        ({"stop": [1]}, "stop"),
        ({"extra": {"tools": [{}]}}, "tools"),
        ({"extra": {"logit_bias": {"1": 1}}}, "logit_bias"),
        ({"extra": {"presence_penalty": "x"}}, "presence_penalty"),
        ({"extra": {"max_completion_tokens": "x"}}, "max_completion_tokens"),
        ({"extra": {"response_format": {"type": "json_object"}}}, "json_object"),
        ({"extra": {"response_format": {"type": "json_schema"}}}, "json_schema.schema"),
    ],
)
def test_unsupported_parameter_is_named(sampling: dict[str, Any], named: str) -> None:
    with pytest.raises(Permanent, match=named):
        plan_request(_request(**sampling), max_tokens=9)


def test_unsupported_schema_is_permanent() -> None:
    request = Request(prompt="x", schema={"type": "string", "pattern": "a"})
    with pytest.raises(Permanent, match="pattern"):
        plan_request(request, max_tokens=9)


def test_messages_become_plain_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "s"}, {"role": "user", "content": parts},
    ]  # fmt: skip
    assert flatten_messages(messages) == [
        {"role": "system", "content": "s"}, {"role": "user", "content": "ab"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "no messages"),
        ([{"role": "wizard", "content": "x"}], "wizard"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "image_url"),
        ([{"role": "user", "content": 3}], "content"),
        ([{"role": "assistant", "tool_calls": [{}]}], "tool calls"),
    ],
)
def test_unsupported_message_is_named(messages: list[dict[str, Any]], named: str) -> None:
    with pytest.raises(Permanent, match=named):
        flatten_messages(messages)
