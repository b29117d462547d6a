"""A node's view of the state: what is not there is said with the node, the key, and what is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

import pytest
from pydantic import BaseModel

from scaleinfer import ConfigError
from scaleinfer.langgraph import gather_node, map_node
from scaleinfer.langgraph._state import items_of


class Typed(TypedDict):
    molecules: list[str]
    answers: list[str]


class Child(Typed):
    extra: int


@dataclass
class Data:
    molecules: list[str]
    answers: list[str] = field(default_factory=list)


class Model(BaseModel):
    molecules: list[str]
    answers: list[str] = []


STATES = [{"molecules": ["a"], "answers": []}, Data(["a"]), Model(molecules=["a"])]


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
def test_items_of_every_kind_of_state(state: Any) -> None:
    assert items_of(state, "molecules", "ask") == ["a"]
    with pytest.raises(ConfigError, match="Node 'ask': the state has no 'smiles'") as raised:
        items_of(state, "smiles", "ask")
    assert "molecules, answers" in raised.value.hint


@pytest.mark.parametrize("value", ["one text", b"bytes", {"a": 1}, None, 7])
def test_what_is_no_list(value: Any) -> None:
    with pytest.raises(ConfigError, match="the state's 'molecules' is no list but") as raised:
        items_of({"molecules": value}, "molecules", "ask")
    assert type(value).__name__ in raised.value.message
    with pytest.raises(ConfigError, match="what items= returned is no list"):
        items_of({}, lambda _: value, "ask")


def test_a_function_of_the_state() -> None:
    state = {"pairs": {"a": 1, "b": 2}}
    assert list(items_of(state, lambda s: s["pairs"].keys(), "ask")) == ["a", "b"]
    with pytest.raises(ConfigError, match=r"items= raised KeyError: 'no'") as raised:
        items_of(state, lambda s: s["no"], "ask")
    assert "pairs" in raised.value.hint
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize("schema", [Typed, Child, Data, Model])
def test_keys_are_checked_when_the_node_is_made(schema: type) -> None:
    map_node("{}", items="molecules", into="answers", state_schema=schema)
    with pytest.raises(ConfigError, match=rf"into='answer' is no key of {schema.__name__}"):
        map_node("{}", items="molecules", into="answer", state_schema=schema)
    with pytest.raises(ConfigError, match="items='smiles'"):
        map_node("{}", items="smiles", into="answers", state_schema=schema)
    with pytest.raises(ConfigError, match="expect='all'"):
        gather_node(items="molecules", into="answers", expect="all", state_schema=schema)


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="map_node has no option 'modle'"):
        map_node("{}", items="a", into="b", modle="x")  # type: ignore[call-arg] # a typing error
    with pytest.raises(ConfigError, match="same key, 'b'"):
        map_node("{}", items="a", into="b", failures="b")
    with pytest.raises(ConfigError, match="items must be"):
        map_node("{}", items=3, into="b")  # type: ignore[arg-type] # what a user may write
    with pytest.raises(ConfigError, match="three different keys, not a, a"):
        gather_node(items="a", into="a")
    with pytest.raises(ConfigError, match="gather must be"):
        gather_node("count", items="a", into="b")  # type: ignore[arg-type] # as above
