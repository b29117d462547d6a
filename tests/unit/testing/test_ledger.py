from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.testing import Ledger

HEADERS = (("accept", "*/*"),)


def filled() -> Ledger:
    ledger = Ledger()
    first = ledger.arrive(("a",), 10.0, model="m", authorised=True, headers=HEADERS)
    second = ledger.arrive(("b",), 11.0, model="m", stream=True, body=b"{}")
    first.fault = "status 503"
    ledger.finish(first, 12.0, status=503)
    again = ledger.arrive(("a",), 13.0, model="m")
    ledger.finish(again, 14.0, status=200, ok=True)
    ledger.finish(second, 15.0, aborted=True)
    ledger.arrive(("c",), 16.0)
    return ledger


def test_records_say_what_happened() -> None:
    one, two, three, four = filled().requests
    assert (one.prompt, one.attempt, one.status, one.fault, one.ok) == (
        "a", 1, 503, "status 503", False,
    )  # fmt: skip
    assert (one.arrived, one.finished, one.authorised, one.headers) == (
        10.0, 12.0, True, {"accept": "*/*"},
    )  # fmt: skip
    assert (two.aborted, two.status, two.stream, two.body) == (True, None, True, b"{}")
    assert (three.prompt, three.attempt, three.ok, three.fault) == ("a", 2, True, "")
    assert (four.finished, four.model, four.authorised) == (None, "", False)


def test_totals() -> None:
    ledger = filled()
    assert (ledger.arrived, ledger.answered, ledger.aborted) == (4, 1, 1)
    assert (ledger.in_flight, ledger.peak_in_flight) == (1, 2)
    assert ledger.counts() == {"a": 1, "b": 0, "c": 0}
    assert ledger.asked() == {"a": 2, "b": 1, "c": 1}
    assert [r.attempt for r in ledger.by_prompt()["a"]] == [1, 2]
    statistics = ledger.statistics()
    assert statistics["by_status"] == {503: 1, 200: 1}
    assert statistics["by_fault"] == {"status 503": 1}
    assert statistics["seconds"] == 5.0
    assert statistics["answered_again"] == 0


def test_an_empty_ledger() -> None:
    ledger = Ledger()
    assert ledger.requests == []
    assert ledger.by_prompt() == {}
    assert ledger.statistics()["seconds"] == 0.0


def test_a_packed_request_counts_for_each_prompt() -> None:
    ledger = Ledger()
    entry = ledger.arrive(("a", "b", "a"), 1.0)
    ledger.finish(entry, 2.0, status=200, ok=True)
    assert ledger.counts() == {"a": 2, "b": 1}
    assert ledger.requests[0].prompts == ("a", "b", "a")
    assert {p: len(r) for p, r in ledger.by_prompt().items()} == {"a": 1, "b": 1}


def test_counts_mode_keeps_no_requests_but_the_same_totals() -> None:
    ledger = Ledger("counts")
    for prompt in ("a", "b", "a"):
        ledger.finish(ledger.arrive((prompt,), 1.0), 2.0, status=200, ok=True)
    assert ledger.requests == []
    assert ledger.counts() == {"a": 2, "b": 1}
    assert ledger.statistics()["answered_again"] == 1


@pytest.mark.parametrize("mode", ["full", "counts"])
def test_travels_as_json(mode: str) -> None:
    ledger = filled()
    if mode == "counts":
        ledger = Ledger("counts")
        ledger.finish(ledger.arrive(("a",), 1.0), 2.0, status=200, ok=True)
    ledger.unknown_fields["top_k"] += 1
    copy = Ledger.from_dict(orjson.loads(orjson.dumps(ledger.to_dict())))
    assert copy.requests == ledger.requests
    assert copy.statistics() == ledger.statistics()
    assert copy.counts() == ledger.counts()
    # The copy goes on counting where the original was.
    assert copy.arrive(("a",), 20.0).attempt == ledger.arrive(("a",), 20.0).attempt


def test_rows_are_small() -> None:
    ledger = Ledger()
    for _ in range(1000):
        ledger.finish(ledger.arrive(("a",), 1.0), 2.0, status=200, ok=True)
    assert len(ledger._rows) <= 60 * 1000


@given(
    events=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["ok", "bad", "gone", "open"])),
        max_size=30,
    )
)
def test_the_books_balance(events: list[tuple[str, str]]) -> None:
    ledger = Ledger()
    for time, (prompt, outcome) in enumerate(events):
        entry = ledger.arrive((prompt,), float(time))
        if outcome != "open":
            ok = outcome == "ok"
            status = {"ok": 200, "bad": 500, "gone": 0}[outcome]
            ledger.finish(entry, time + 0.5, status=status, ok=ok, aborted=outcome == "gone")
    outcomes = [outcome for _, outcome in events]
    assert ledger.arrived == len(events) == len(ledger.requests)
    assert ledger.answered == outcomes.count("ok") == sum(ledger.counts().values())
    assert ledger.aborted == outcomes.count("gone")
    assert ledger.in_flight == outcomes.count("open")
    assert sum(ledger.asked().values()) == len(events)
    for records in ledger.by_prompt().values():
        assert [record.attempt for record in records] == list(range(1, len(records) + 1))
