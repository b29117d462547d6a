from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.backends._completion import _shared
from scaleinfer.backends._packing import packs
from scaleinfer.requests import Request, Sampling

CHAT = [{"role": "user", "content": "Is it?"}]
COLD, WARM = Sampling(temperature=0.0), Sampling(temperature=1.0)


def test_only_what_is_asked_alike_goes_together() -> None:
    requests = [
        Request(prompt="a", sampling=COLD),
        Request(prompt="b", sampling=WARM),
        Request(prompt="c", sampling=Sampling(temperature=0.0)),
        Request(CHAT, sampling=COLD),
        Request(prompt="d", sampling=COLD, model="other"),
        Request(prompt="e", sampling=COLD, schema={"type": "object"}),
        Request(prompt="f", sampling=WARM),
        Request(prompt="g", sampling=COLD),
        Request(prompt="h", sampling=COLD),
    ]
    assert packs(requests, 3) == [[0, 2, 7], [1, 6], [3], [4], [5], [8]]
    assert packs(requests[:3], 1) == [[0], [1], [2]]
    assert packs([], 16) == []


@given(st.lists(st.sampled_from([COLD, WARM]), max_size=40), st.integers(1, 5))
def test_every_request_is_in_one_pack(samplings: list[Sampling], most: int) -> None:
    requests = [Request(prompt="p", sampling=sampling) for sampling in samplings]
    found = packs(requests, most)
    assert sorted(position for pack in found for position in pack) == list(range(len(requests)))
    for pack in found:
        assert 1 <= len(pack) <= most
        assert len({samplings[position].temperature for position in pack}) == 1


@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**4), min_size=1, max_size=20))
def test_shares_add_up_and_follow_the_weights(total: int, weights: list[int]) -> None:
    parts = _shared(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        fair = total * weight / whole if whole else total / len(weights)
        assert abs(part - fair) <= 1
