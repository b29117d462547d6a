"""What the ledger says of windows of time."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.testing import Ledger
from scaleinfer.testing._seconds import PerSecond


def served(
    ledger: Ledger, at: float, end: float, tokens: int, *, status: int = 200, client: str = ""
) -> None:
    entry = ledger.arrive(("p",), 1000.0 + at, client=client)
    entry.prompt_tokens, entry.completion_tokens, entry.cached_tokens = 8, tokens, 4
    entry.started = 1000.0 + at
    ledger.finish(entry, 1000.0 + end, status=status, ok=status == 200)


@pytest.mark.parametrize("mode", ["full", "counts"])
def test_goodput_and_rejections_in_windows(mode: str) -> None:
    ledger = Ledger("full" if mode == "full" else "counts")
    served(ledger, 0.0, 0.5, 100)
    served(ledger, 0.0, 1.5, 300)
    served(ledger, 1.0, 1.2, 0, status=429)
    served(ledger, 3.0, 3.1, 999, status=503)
    served(ledger, 3.0, 4.0, 200)
    assert ledger.seconds == 4.0
    assert ledger.goodput(0, 1) == 100
    assert ledger.goodput(0, 2) == 200
    assert ledger.goodput(1, 1.5) == 300  # half a second of 300 tokens
    assert ledger.goodput() == pytest.approx(100)
    assert ledger.goodput(0, 5) == 120
    assert ledger.goodput(2, 2) == ledger.goodput(7, 8) == 0
    assert ledger.rejected_share(1, 2) == 0.5
    assert ledger.rejected_share(0, 5) == pytest.approx(2 / 5)
    assert ledger.rejected_share(2, 3) == 0
    assert ledger.per_second()["tokens"] == [100, 300, 0, 0, 200]
    assert (ledger.prompt_tokens, ledger.completion_tokens, ledger.cached_tokens) == (24, 600, 12)


def test_peaks_in_windows() -> None:
    ledger = Ledger("counts")
    entries = [ledger.arrive(("p",), 1000.0 + i) for i in (0.0, 0.1, 0.2, 2.0)]
    for entry in entries:
        ledger.finish(entry, 1003.0)
    assert [ledger.peak(0, 1), ledger.peak(1, 2), ledger.peak(2, 3), ledger.peak()] == [3, 0, 4, 4]


def test_clients_share_goodput() -> None:
    ledger = Ledger()
    served(ledger, 0.0, 0.5, 300, client="a")
    served(ledger, 0.0, 0.5, 100, client="b")
    served(ledger, 0.0, 2.5, 100, client="b")
    served(ledger, 0.0, 2.5, 100)
    assert ledger.shares(0, 1) == {"a": 0.75, "b": 0.25}
    assert ledger.shares(2, 3) == {"a": 0, "b": 1}
    assert ledger.shares(5, 6) == {}
    assert ledger.goodput(0, 1, client="b") == 100
    assert ledger.goodput(0, 1, client="nobody") == 0
    assert [record.client for record in ledger] == ["a", "b", "b", ""]
    copy = Ledger.from_dict(orjson.loads(orjson.dumps(ledger.to_dict())))
    assert copy.shares() == ledger.shares()
    assert copy.per_second() == ledger.per_second()
    assert copy.requests == ledger.requests
    assert copy.statistics() == ledger.statistics()


def test_records_know_their_times_and_tokens() -> None:
    ledger = Ledger()
    served(ledger, 1.0, 2.0, 5)
    ledger.arrive(("q",), 1003.0)
    first, second = ledger.requests
    assert (first.arrived, first.started, first.finished) == (1001.0, 1001.0, 1002.0)
    assert (first.prompt_tokens, first.completion_tokens, first.cached_tokens) == (8, 5, 4)
    assert (second.started, second.finished) == (None, None)


@given(
    events=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 50)), max_size=40),
    cuts=st.lists(st.floats(0, 25), min_size=2, max_size=5).map(sorted),
)
def test_windows_side_by_side_add_up(events: list[tuple[float, int]], cuts: list[float]) -> None:
    seconds = PerSecond()
    for at, tokens in events:
        seconds.arrive(at, 1)
        seconds.finish(at)
        seconds.answer(at, tokens, "")
    parts = [seconds.total(seconds.tokens, a, b) for a, b in itertools.pairwise(cuts)]
    assert sum(parts) == pytest.approx(seconds.total(seconds.tokens, cuts[0], cuts[-1]))
    assert seconds.total(seconds.tokens, 0, 30) == sum(tokens for _, tokens in events)
    assert len({len(column) for column in (seconds.arrived, seconds.tokens, seconds.peak)}) == 1
