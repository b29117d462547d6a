from __future__ import annotations

import pytest

from scaleinfer.observe import Place, RunRecord
from scaleinfer.observe._record import OTHERS
from scaleinfer.results import Attempt

START = 1_700_000_000.0


def call(second: float = 0.0, **changes: object) -> Attempt:
    values: dict[str, object] = {
        "number": 1,
        "endpoint": "a",
        "started": START + second,
        "latency_s": 0.5,
        "status": "ok",
        "prompt_tokens": 10,
        "completion_tokens": 4,
    }
    return Attempt(**(values | changes))  # type: ignore[arg-type]  # a test's shorthand


def test_calls_are_counted_by_endpoint_and_kind() -> None:
    record = RunRecord(START)
    record.attempted(call(cost_usd=0.25))
    record.attempted(call(1, endpoint="b", status="RateLimited", http_status=429))
    record.attempted(call(2, endpoint="b", status="Transient"))
    assert record.endpoints == ["b", "a"]
    assert (record.calls["a"].ok, record.calls["a"].tokens) == (1, 4)
    assert record.calls["b"].failed == 2
    assert {kind: sum(row) for kind, row in record.errors.items()} == {
        "RateLimited 429": 1,
        "Transient": 1,
    }
    assert record.cost_usd == 0.25
    assert sum(record.timeline.counts(record.completions)) == 4
    assert record.elapsed_s == 2.5
    assert record.latency.number == 1


def test_memory_is_bounded_whatever_comes() -> None:
    record = RunRecord(START)
    for number in range(100):
        record.attempted(call(number * 1000, endpoint=f"e{number}"))
        record.attempted(call(endpoint="e0", status="Permanent", http_status=400 + number))
    assert len(record.calls) <= 25
    assert record.calls[OTHERS].ok == 100 - 24
    assert len(record.errors) <= 13
    assert sum(record.errors["other"]) == 100 - 12
    assert record.timeline.bins <= 600
    for number in range(5000):
        record.limits(number, [Place("e0", number % 97 + 1, f"reason {number % 3}")])
    assert len(record.decisions) <= 300
    assert record.decisions[0].time == 0
    assert record.decisions[-1].time > 4990
    limits = record.limits_of("e0")
    assert len(limits) <= 401
    assert limits[-1] == (4999, 4999 % 97 + 1)


def test_a_clock_that_was_set_back_does_no_harm() -> None:
    record = RunRecord(START)
    record.attempted(call(-3600))
    assert record.elapsed_s == 0.5


def test_only_what_changes_is_a_decision() -> None:
    record = RunRecord(START)
    record.limits(0, [Place("a", 64, "finding the knee")])
    record.limits(1, [Place("a", 64, "finding the knee")])
    record.limits(2, [Place("a", 66, "finding the knee")])
    record.limits(3, [Place("a", 66, "at the knee")])
    record.limits(4, [Place("a", 33, "at the knee")])
    assert [(one.time, one.limit) for one in record.decisions] == [(0, 64), (3, 66), (4, 33)]
    assert record.limits_of("a") == [(0, 64), (2, 66), (4, 33)]


def test_limits_go_through_json() -> None:
    record = RunRecord(START)
    record.limits(1, [Place("a", 64, "fixed")])
    other = RunRecord(START - 2)
    other.take_limits(record.limits_to_data())
    assert other.limits_of("a") == [(3.0, 64)]
    assert [one.reason for one in other.decisions] == ["fixed"]
    for wrong in ({}, {"started": "x"}, {"started": 1, "limits": [], "decisions": []}):
        with pytest.raises(ValueError, match="no limits"):
            other.take_limits(wrong)
