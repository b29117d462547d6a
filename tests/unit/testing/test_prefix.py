from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.testing import prefix_blocks
from scaleinfer.testing._prefix import PrefixCache


@given(shared=st.text(max_size=300), one=st.text(max_size=200), two=st.text(max_size=200))
def test_blocks_are_shared_as_far_as_the_texts_are(shared: str, one: str, two: str) -> None:
    first, second = prefix_blocks(shared + one, 4), prefix_blocks(shared + two, 4)
    assert len(first) == len(shared + one) // 16
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        end = 16 * (i + 1)
        assert (a == b) == ((shared + one)[:end] == (shared + two)[:end])


def test_equal_blocks_after_different_ones_differ() -> None:
    assert prefix_blocks("a" * 64 + "c" * 64)[1] != prefix_blocks("b" * 64 + "c" * 64)[1]


def test_hits_end_at_the_first_miss() -> None:
    cache = PrefixCache(10)
    assert cache.use([1, 2, 3]) == 0
    assert cache.use([1, 2, 4, 3]) == 2
    assert cache.use([9, 1]) == 0
    assert cache.use([1, 2, 4, 3]) == 4


def test_the_last_blocks_of_the_oldest_prompt_give_way_first() -> None:
    cache = PrefixCache(4)
    cache.use([1, 2, 3])
    cache.use([7, 8])
    assert cache.use([1, 2, 3]) == 2  # 3 gave way for 8
    assert cache.use([7, 8]) == 1


def test_a_prompt_larger_than_the_cache_keeps_its_beginning() -> None:
    cache = PrefixCache(2)
    cache.use([1, 2, 3])
    assert cache.use([1, 2, 3]) == 2


@given(
    capacity=st.integers(0, 6),
    prompts=st.lists(st.lists(st.integers(0, 8), max_size=6, unique=True), max_size=30),
)
def test_the_cache_is_an_lru_of_blocks(capacity: int, prompts: list[list[int]]) -> None:
    cache, reference = PrefixCache(capacity), OrderedDict[int, None]()
    for blocks in prompts:
        hits = next((i for i, b in enumerate(blocks) if b not in reference), len(blocks))
        assert cache.use(blocks) == hits
        for block in reversed(blocks[:capacity]):
            reference.pop(block, None)
            reference[block] = None
        while len(reference) > capacity:
            reference.popitem(last=False)
        assert len(cache) == len(reference) <= capacity
