"""`map_node` takes what `parallel_map` takes, and caps it as the graph's config says."""

from __future__ import annotations

from typing import Any

import pytest

from scaleinfer import Concurrency
from scaleinfer.langgraph._journals import Place
from scaleinfer.langgraph._node import NodeOptions, _capped, _run_name
from scaleinfer.mapping import MapOptions


def test_options_are_those_of_a_map() -> None:
    assert set(NodeOptions.__annotations__) == set(MapOptions.__annotations__)


@pytest.mark.parametrize(
    ("given", "most", "capped"),
    [
        ("auto", None, "auto"),
        ("auto", 8, Concurrency(max=8)),
        (4, 8, 4),
        (16, 8, 8),
        (Concurrency(max=5), 8, Concurrency(max=5)),
        (Concurrency(min=10, start=20, max=40), 8, Concurrency(min=8, start=8, max=8)),
    ],
)
def test_max_concurrency_caps(given: Any, most: int | None, capped: Any) -> None:
    assert _capped(given, most) == capped


def test_a_cap_leaves_the_users_own_object_alone() -> None:
    mine = Concurrency(max=5)
    assert _capped(mine, 8) is mine
    assert _capped(mine, 3) is not mine
    assert mine.max == 5


def test_a_runs_name_says_where_it_belongs() -> None:
    place = Place("ask", thread="t-1")
    assert _run_name("ask", place, {"tags": ["x", "y"]}) == "ask, thread t-1 [x, y]"
    assert _run_name("ask", Place("ask"), {}) == "ask"
