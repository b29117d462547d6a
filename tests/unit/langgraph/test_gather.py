"""`gather_node`: fan-in in order, failures apart, nothing missing."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.types import Command

from scaleinfer import ConfigError, PromptError, Result
from scaleinfer.langgraph import gather_node


def good(index: int) -> Result:
    return Result(str(index), index, ok=True, value=index)


BAD = Result("bad", 1, error=PromptError("no"))
STATE: dict[str, Any] = {"found": [good(2), BAD, [good(0)]], "items": [1, 2, 3], "count": 3}


def test_in_order_with_failures_apart() -> None:
    node = gather_node(items="found", into="all", failures="failed", order="index")
    assert node.invoke(STATE) == {"all": [good(0), good(2)], "failed": [BAD]}


def test_a_function_of_what_was_found() -> None:
    def total(results: list[Result]) -> int:
        return sum(result.value for result in results if result.ok)

    assert gather_node(total, items="found", into="sum").invoke(STATE) == {"sum": 2}


@pytest.mark.parametrize("expect", [3, "items", "count", lambda state: len(state["items"])])
def test_nothing_is_missing(expect: Any) -> None:
    node = gather_node(len, items="found", into="n", expect=expect)
    assert node.invoke(STATE) == {"n": 3}
    with pytest.raises(PromptError, match="'found' holds 2 elements, not 3"):
        node.invoke(STATE | {"found": [good(1), good(2)]})


def test_where_to_go() -> None:
    node = gather_node(len, items="found", into="n", goto=lambda n: "retry" if n < 9 else "end")
    assert node.invoke(STATE) == Command(update={"n": 3}, goto="retry")
    fixed = gather_node(len, items="found", into="n", goto="end")
    assert fixed.invoke(STATE) == Command(update={"n": 3}, goto="end")


def test_what_cannot_be_sorted_or_is_not_there() -> None:
    with pytest.raises(ConfigError, match="an element has no 'rank' to be sorted by"):
        gather_node(items="found", into="all", order="rank").invoke(STATE)
    with pytest.raises(ConfigError, match="the state has no 'lost'"):
        gather_node(items="lost", into="all").invoke(STATE)
    by_name = gather_node(items="found", into="all", order="n")
    assert by_name.invoke({"found": [{"n": 2}, {"n": 1}]}) == {"all": [{"n": 1}, {"n": 2}]}
