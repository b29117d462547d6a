"""Reducers: what they make of updates, and that the order of parallel branches does not matter."""

from __future__ import annotations

import operator
import statistics as stdlib
from collections import Counter
from functools import reduce
from typing import Annotated, Any, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.graph import START, StateGraph

from scaleinfer import ConfigError, PromptError, Result
from scaleinfer.langgraph import (
    append_in_order,
    best_of,
    keep_failures,
    keep_ok,
    merge_by_key,
    statistics,
    tally,
    top_k,
)

NUMBERS = st.integers(-1000, 1000)
BRANCHES = st.lists(st.lists(NUMBERS, max_size=6), max_size=6)
RECORDS = st.builds(lambda name, score: {"name": name, "score": score}, st.text("ab"), NUMBERS)


def good(key: str, value: Any) -> Result:
    return Result(key, 0, ok=True, text=str(value), value=value)


def bad(key: str, message: str = "no") -> Result:
    return Result(key, 0, error=PromptError(message))


def folded(reducer: Any, updates: Any, empty: Any) -> Any:
    return reduce(reducer, updates, empty)


@given(branches=BRANCHES, chance=st.randoms(use_true_random=False))
def test_order_of_branches_does_not_matter(branches: list[list[int]], chance: Any) -> None:
    shuffled = branches.copy()
    chance.shuffle(shuffled)
    for reducer, empty in (
        (append_in_order(by=operator.neg), []),
        (tally(), {}),
        (top_k(3, score=float), []),
        (best_of(float, largest=False), []),
        (merge_by_key(lambda number: number % 7, conflict=max), {}),
    ):
        assert folded(reducer, shuffled, empty) == folded(reducer, branches, empty)


@given(a=st.lists(NUMBERS), b=st.lists(NUMBERS), c=st.lists(NUMBERS))
def test_groups_of_branches_do_not_matter(a: list[int], b: list[int], c: list[int]) -> None:
    for reducer, empty in (
        (append_in_order(), []),
        (tally(), {}),
        (top_k(2, score=float), []),
        (merge_by_key(lambda number: number % 5, conflict=min), {}),
        (merge_by_key(lambda number: number % 5), {}),
    ):
        whole = folded(reducer, [a, b, c], empty)
        assert reducer(reducer(empty, a), reducer(reducer(empty, b), c)) == whole


@given(branches=BRANCHES)
def test_statistics_are_those_of_all_numbers(branches: list[list[int]]) -> None:
    found = folded(statistics(), branches, {})
    numbers = [number for branch in branches for number in branch]
    if not numbers:
        assert found == {}
        return
    assert (found["count"], found["min"], found["max"]) == (
        len(numbers), min(numbers), max(numbers),
    )  # fmt: skip
    assert found["mean"] == pytest.approx(stdlib.mean(numbers), abs=1e-9)
    if len(numbers) > 1:
        assert found["stdev"] == pytest.approx(stdlib.stdev(numbers), abs=1e-6)
    else:
        assert found["stdev"] is None


@given(branches=st.lists(st.lists(RECORDS, max_size=5), max_size=5))
def test_top_k_is_what_sorting_everything_gives(branches: list[list[dict[str, Any]]]) -> None:
    found = folded(top_k(3, score="score"), branches, [])
    everything = [record for branch in branches for record in branch]
    best = sorted((record["score"] for record in everything), reverse=True)[:3]
    assert [record["score"] for record in found] == best


def test_what_has_no_score_is_left_out() -> None:
    written = [good("a", 3.0), bad("b"), good("c", None), good("d", float("nan")), good("e", True)]
    assert [result.key for result in top_k(5)([], written)] == ["a"]
    assert best_of()([], [good("a", 1), good("b", 2)])[0].key == "b"
    assert best_of(largest=False)([], [good("a", 1), good("b", 2)])[0].key == "a"
    with pytest.raises(ConfigError, match=r"top_k: \{'a': 1\} has no 'score'"):
        top_k(2, score="score")([], [{"a": 1}])
    with pytest.raises(ConfigError, match="positive"):
        top_k(0)


def test_merge_takes_an_answer_over_a_failure() -> None:
    merge = merge_by_key(conflict="raise")
    first = merge({}, [good("a", 1), bad("b")])
    assert merge(first, [bad("a"), good("b", 2)]) == {"a": good("a", 1), "b": good("b", 2)}
    assert first["b"].ok is False, "what was given is not changed"


def test_merge_conflicts() -> None:
    one, two = [{"id": 1, "v": "x"}], [{"id": 1, "v": "y"}]
    assert merge_by_key("id")(one, two) == {1: two[0]}
    assert merge_by_key("id", conflict="first")(one, two) == {1: one[0]}
    strict = merge_by_key("id", conflict="raise")
    assert strict(one, one) == {1: one[0]}
    with pytest.raises(ConfigError, match="two branches wrote different values for 1") as raised:
        strict(one, two)
    assert "conflict=" in raised.value.hint
    with pytest.raises(ConfigError, match="has no 'key'"):
        merge_by_key()({}, [{"id": 1}])
    with pytest.raises(ConfigError, match="'any'"):
        merge_by_key(conflict="any")  # type: ignore[arg-type] # what a user may write


def test_tally_counts_answers() -> None:
    counted = tally()({}, [good("a", "yes"), good("b", "no"), good("c", "yes"), bad("d")])
    assert counted == {"yes": 2, "no": 1}
    assert tally()(counted, {"no": 3}) == {"yes": 2, "no": 4}
    assert tally()(counted, "no") == {"yes": 2, "no": 2}
    by_field = tally(of="label")
    assert by_field(by_field({}, good("a", {"label": "p"})), {"label": "q"}) == {"p": 1, "q": 1}


def test_statistics_of_results() -> None:
    found = statistics(of="mass")({}, [good("a", {"mass": 2}), good("b", {"mass": 4}), bad("c")])
    assert (found["count"], found["mean"], found["min"]) == (2, 3, 2)
    assert statistics()(found, "unknown") == found


def test_failures_are_kept_apart() -> None:
    written = [good("a", 1), bad("b"), bad("c")]
    kept = keep_failures()([], written)
    assert [result.key for result in kept] == ["b", "c"]
    assert keep_failures()(kept, [bad("b")]) == kept
    assert [result.key for result in keep_ok()([], written)] == ["a"]
    with pytest.raises(ConfigError, match="keep_ok: 'text' is no result of a map"):
        keep_ok()([], ["text"])


def test_a_set_has_no_order() -> None:
    with pytest.raises(ConfigError, match="a set has no order"):
        append_in_order()([], {1, 2})


class State(TypedDict):
    counts: Annotated[dict[str, int], tally()]
    best: Annotated[list[float], top_k(2, score=float)]
    numbers: Annotated[dict[str, Any], statistics()]
    parts: Annotated[list[str], append_in_order()]


def test_langgraph_takes_them() -> None:
    def branch(name: str, number: float) -> Any:
        return lambda _: {"counts": name, "best": number, "numbers": [number], "parts": [name]}

    builder = StateGraph(State)
    for name, number in (("x", 1.0), ("y", 5.0), ("z", 3.0)):
        builder.add_node(name, branch(name, number)).add_edge(START, name)
    state = builder.compile().invoke({"counts": {}, "best": [], "numbers": {}, "parts": []})
    assert Counter(state["counts"]) == Counter("xyz")
    assert state["best"] == [5.0, 3.0]
    assert state["numbers"]["mean"] == 3.0
    assert state["parts"] == ["x", "y", "z"]
