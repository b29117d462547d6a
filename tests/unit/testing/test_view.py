from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.testing import RequestView
from scaleinfer.testing._view import count_tokens, find_prompts


def chat(*turns: str) -> dict[str, Any]:
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return {"messages": [{"role": roles[t[0]], "content": t[2:]} for t in turns]}


def prompt_of(body: dict[str, Any], *known: str) -> str:
    view = RequestView("/v1/chat/completions", body)
    (prompt,) = find_prompts(view, lambda text: text in known)
    return prompt


def test_the_last_user_message_is_the_prompt() -> None:
    assert prompt_of(chat("s:Be brief.", "u:Is it soluble?")) == "Is it soluble?"


def test_few_shot_examples_are_not_the_prompt() -> None:
    assert prompt_of(chat("u:example", "a:yes", "u:question"), "question") == "question"


def test_a_repair_is_filed_under_the_prompt_that_was_asked() -> None:
    repair = chat("u:example", "a:yes", "u:question", "a:bad", "u:Not JSON.", "a:bad", "u:Still.")
    assert prompt_of(repair, "question") == "question"


def test_a_tool_result_is_filed_under_the_prompt_that_was_asked() -> None:
    assert prompt_of(chat("u:question", "a:", "t:42"), "question") == "question"


def test_two_user_messages_in_a_row_are_no_earlier_turn() -> None:
    assert prompt_of(chat("u:context", "u:question"), "context") == "question"


@pytest.mark.parametrize(
    ("body", "prompts"),
    [
        ({"prompt": "a"}, ("a",)),
        ({"prompt": ["a", "b"]}, ("a", "b")),
        ({"prompt": [1, 2]}, ("[1, 2]",)),
        ({"prompt": [[1, 2], [3]]}, ("[1, 2]", "[3]")),
        ({"prompt": []}, ("[]",)),
        ({}, ("",)),
        ({"messages": []}, ("",)),
        ({"messages": "no list"}, ("",)),
        ({"messages": ["no object"]}, ("",)),
        ({"messages": [{"role": "system", "content": "alone"}]}, ("alone",)),
        ({"messages": [{"role": "user", "content": None}]}, ("",)),
    ],
)
def test_whatever_comes_has_a_prompt(body: dict[str, Any], prompts: tuple[str, ...]) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    assert find_prompts(RequestView(path, body), lambda _: False) == prompts


def test_parts_of_a_message_are_joined() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    content = [{"type": "text", "text": "a"}, image, {"type": "text", "text": "b"}]
    assert prompt_of({"messages": [{"role": "user", "content": content}]}) == "a\nb"


def test_prompt_tokens_are_those_of_all_messages() -> None:
    view = RequestView("/v1/chat/completions", chat("s:12345", "u:1234"), ("1234",))
    assert view.prompt_tokens == 3
    assert RequestView("/v1/completions", {"prompt": "12345"}, ("12345",)).prompt_tokens == 2


@given(text=st.text())
def test_a_token_is_four_characters_begun(text: str) -> None:
    assert (count_tokens(text) - 1) * 4 < len(text) <= count_tokens(text) * 4
