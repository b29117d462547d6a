from __future__ import annotations

import heapq
import random
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.engine._hedging import Hedger, Quantiles


@given(
    values=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=3000),
    share=st.floats(0.01, 1.0),
)
def test_quantiles_are_right_to_within_a_bucket(values: list[float], share: float) -> None:
    it = Quantiles()
    for value in values:
        it.add(value)
    values.sort()
    near = [
        values[max(0, min(len(values) - 1, int(share * len(values)) + step))] for step in (-1, 0)
    ]
    assert near[0] / 1.026 <= it.at(share) <= near[1] * 1.026


def test_quantiles_forget() -> None:
    it = Quantiles()
    for _ in range(20_000):
        it.add(1.0)
    for _ in range(20_000):
        it.add(10.0)
    assert it.at(0.05) == pytest.approx(10.0, rel=0.03)
    assert len(it._buckets) <= 2


def test_quantiles_of_nothing() -> None:
    with pytest.raises(ValueError, match="no numbers"):
        Quantiles().at(0.5)


def fed(took: float = 1.0, tokens: int = 10, *, calls: int = 1000, places: int = 8) -> Hedger:
    it = Hedger(places=places)
    for _ in range(calls):
        it.started()
        it.answered(took, tokens)
    return it


def test_only_in_the_tail_of_a_run_of_known_length() -> None:
    it = fed()
    assert it.hedge_after(None) is None
    assert it.hedge_after(50) is None
    assert it.hedge_after(20) is not None
    it.places = 64
    assert it.hedge_after(64) is not None


def test_not_before_enough_is_known() -> None:
    assert fed(calls=19).hedge_after(1) is None
    assert fed(calls=20).hedge_after(1) == pytest.approx(1.5, rel=0.03)


def test_long_answers_at_the_usual_pace_are_not_late() -> None:
    it = fed(took=1.0, tokens=10, calls=970)
    for _ in range(30):
        it.started()
        it.answered(30.0, 300)
    after = it.hedge_after(1)
    assert after is not None
    assert after > 30.0


def test_answers_without_tokens() -> None:
    assert fed(took=0.0, tokens=0).hedge_after(1) is not None


@given(
    share=st.floats(0.001, 1.0),
    events=st.lists(st.sampled_from(["start", "take", "shrink"]), max_size=300),
)
def test_never_more_second_copies_than_its_share(share: float, events: list[str]) -> None:
    it, started, taken = Hedger(share), 0, 0
    for event in events:
        if event == "start":
            it.started()
            started += 1
        else:
            got = it.take(event == "shrink")
            assert not (got and event == "shrink")
            taken += got
            assert taken <= share * started
            assert event == "shrink" or got or taken + 1 > share * started
    assert it.hedged == taken


class Outcome(NamedTuple):
    seconds: float
    tail: float
    extra: float


def heavy_tailed(
    items: int, places: int, *, hedging: bool, slow: float = 0.015, seed: int = 1
) -> Outcome:
    """Simulate a run on a server where some calls take 10 to 30 times as long.

    It is the server that is slow, not the item: each copy of a call draws its own time.
    """
    rnd = random.Random(seed)
    it = Hedger(places=places)
    order = count()
    events: list[tuple[float, int, str, int]] = []
    began: dict[int, float] = {}
    finished: list[float] = []
    latest: dict[int, float] = {}
    pulled = 0

    def took() -> float:
        return rnd.lognormvariate(0.0, 0.3) * (rnd.uniform(10, 30) if rnd.random() < slow else 1.0)

    def start(item: int, now: float) -> None:
        it.started()
        began[item] = latest[item] = now
        heapq.heappush(events, (now + took(), next(order), "done", item))

    for pulled in range(places):
        start(pulled, 0.0)
    pulled += 1
    heapq.heappush(events, (0.1, next(order), "look", -1))
    while began:
        now, _, kind, item = heapq.heappop(events)
        if kind == "look":
            # A second copy needs a free place, so it waits until everything is in flight.
            after = it.hedge_after(items - len(finished)) if pulled == items else None
            for item in list(began) if hedging else []:
                late = after is not None and now - latest[item] >= after
                if late and it.take(shrinking=False):
                    latest[item] = now
                    heapq.heappush(events, (now + took(), next(order), "done", item))
            heapq.heappush(events, (now + 0.1, next(order), "look", -1))
        elif item in began:
            it.answered(now - began.pop(item), 10)
            finished.append(now)
            if pulled < items:
                start(pulled, now)
                pulled += 1
    last = finished[-1] - finished[int(0.99 * items)]
    return Outcome(finished[-1], last, it.hedged / items)


@pytest.mark.parametrize(("items", "places"), [(2000, 64), (5000, 256)])
@pytest.mark.parametrize("seed", range(3))
def test_hedging_halves_the_tail_for_three_percent_of_calls(
    items: int, places: int, seed: int
) -> None:
    without = heavy_tailed(items, places, hedging=False, seed=seed)
    hedged = heavy_tailed(items, places, hedging=True, seed=seed)
    assert hedged.tail <= without.tail / 2
    assert hedged.extra <= 0.03
    assert hedged.seconds < without.seconds
