"""What is a program, and what is a prompt_fn."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from scaleinfer._identity import content_key
from scaleinfer.errors import PromptError
from scaleinfer.program import is_graph, is_program


async def program(item: Any, llm: Any) -> None: ...


async def with_options(item: Any, llm: Any, tools: Any = ()) -> None: ...


async def three(first: Any, item: Any, llm: Any) -> None: ...


async def prompt(item: Any) -> str:
    return str(item)


async def prompt_with_default(item: Any, language: str = "en") -> str:
    return f"{item} {language}"


def plain(item: Any, other: Any) -> str:
    return f"{item} {other}"


class Agent:
    async def __call__(self, item: Any, llm: Any) -> None: ...

    async def method(self, item: Any, llm: Any) -> None: ...


class Graph:
    async def ainvoke(self, given: Any, config: Any = None) -> Any:
        return given


@pytest.mark.parametrize(
    "given",
    [program, with_options, Agent(), Agent().method, partial(three, 1), Graph()],
)
def test_programs(given: Any) -> None:
    assert is_program(given)


@pytest.mark.parametrize(
    "given", ["{text}", prompt, prompt_with_default, plain, str, Agent, Graph, print, None]
)
def test_what_is_no_program(given: Any) -> None:
    assert not is_program(given)


def test_graphs() -> None:
    assert is_graph(Graph())
    assert not is_graph(Graph)
    assert not is_graph(program)


def test_content_tells_items_apart() -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    with pytest.raises(PromptError, match="no content"):
        content_key(object())


def test_a_messages_id_is_not_its_content() -> None:
    from langchain_core.messages import HumanMessage

    first = {"messages": [HumanMessage("hello", id="1")]}
    assert content_key(first) == content_key({"messages": [HumanMessage("hello")]})
    assert content_key(first) != content_key({"messages": [HumanMessage("bye", id="1")]})
