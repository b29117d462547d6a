from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.observe._distribution import Distribution
from scaleinfer.observe._timeline import Timeline

SPANS = st.lists(
    st.tuples(st.floats(0, 5000), st.floats(0, 900)), min_size=1, max_size=40
)  # when a call began, how long it took


@given(SPANS)
def test_nothing_is_lost_as_bins_are_joined(spans: list[tuple[float, float]]) -> None:
    timeline = Timeline(width=0.05, most=40)
    ended, going = timeline.row(), timeline.steps()
    for start, took in spans:
        ended[timeline.went_on(going, start, start + took)] += 1
    assert timeline.bins <= 40
    assert sum(timeline.counts(ended)) == len(spans)
    # All calls' time is there, within what rounding and the last bin's end leave.
    seconds = sum(timeline.levels(going)) * timeline.width
    assert seconds == pytest.approx(sum(took for _, took in spans), rel=1e-6, abs=1e-4)


@given(SPANS)
def test_levels_are_what_went_on_at_once(spans: list[tuple[float, float]]) -> None:
    timeline = Timeline(width=0.05, most=40)
    going = timeline.steps()
    for start, took in spans:
        timeline.went_on(going, start, start + took)
    width = timeline.width
    for place, level in enumerate(timeline.levels(going)):
        low, high = place * width, (place + 1) * width
        inside = sum(max(0.0, min(high, s + t) - max(low, s)) for s, t in spans)
        assert level == pytest.approx(inside / width, abs=1e-6)


def test_bins_grow_only_as_far_as_needed() -> None:
    timeline = Timeline(width=1.0, most=4)
    row = timeline.row()
    for second in range(9):
        row[timeline.place(second)] += 1
    assert timeline.width == 4.0
    assert timeline.counts(row) == [4, 4, 1]


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200), st.sampled_from([0.1, 0.5, 0.99]))
def test_quantiles_are_off_by_at_most_a_bin(values: list[float], share: float) -> None:
    spread = Distribution()
    for value in values:
        spread.add(value)
    found = spread.quantile(share)
    assert found is not None
    below = sum(value <= found * 1.1 for value in values)
    above = sum(value >= found / 1.1 for value in values)
    assert below >= share * len(values) - 1e-9
    assert above >= (1 - share) * len(values) - 1e-9
    bars = spread.bars(most=10)
    assert len(bars) <= 10
    assert sum(number for _, _, number in bars) == len(values)
    for (_, high, _), (low, _, _) in pairwise(bars):
        assert high == pytest.approx(low)


def test_a_distribution_of_nothing() -> None:
    spread = Distribution()
    assert spread.quantile(0.5) is None
    assert spread.bars() == []
    assert spread.mean == 0.0
    spread.add(0)
    assert (spread.number, spread.bars()) == (1, [])


def test_distributions_add_up() -> None:
    one, other = Distribution(), Distribution()
    one.add(2.0)
    other.add(4.0)
    other.add(0.0)
    both = Distribution.sum([one, other])
    assert (both.number, both.total, both.mean) == (3, 6.0, 2.0)
