from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.engine._orderer import Orderer, ordering_gain, prefix_key, shared_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

SYSTEM = "You are a careful reader. Answer the question about this paper.\n\n"
BLOCK = 64
"""Characters of a block of the prefix cache: 16 tokens."""


def ordered(texts: Iterable[str], window: int) -> list[str]:
    it: Orderer[str] = Orderer(window)
    out: list[str] = []
    for text in texts:
        if it.full:
            out.append(it.pop()[0])
        it.add(text, text)
    while it:
        out.append(it.pop()[0])
    return out


@cache
def questions(papers: int, each: int = 5, seed: int = 1) -> tuple[str, ...]:
    """Return questions about papers of 3 to 6 KB, the paper first, shuffled."""
    rnd = random.Random(seed)
    words = ["".join(rnd.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(2000)]
    texts = [" ".join(rnd.choices(words, k=rnd.randint(430, 860))) for _ in range(papers)]
    asked = [f"{SYSTEM}{text}\n\nQuestion {n}?" for text in texts for n in range(each)]
    rnd.shuffle(asked)
    return tuple(asked)


def hit_rate(texts: Iterable[str], *, blocks: int, in_flight: int) -> float:
    """Return the share of prompt blocks that a prefix cache answers.

    Blocks are evicted least recently used first, the end of a prompt before its start; those
    of calls in flight stay. As vLLM does it.
    """
    idle: OrderedDict[int, None] = OrderedDict()
    used: Counter[int] = Counter()
    calls: deque[list[int]] = deque()
    hits = total = 0
    for text in texts:
        if len(calls) == in_flight:
            for block in reversed(calls.popleft()):
                used[block] -= 1
                if not used[block]:
                    del used[block]
                    idle[block] = None
        mine, block, cached = [], 0, True
        for start in range(0, len(text) - BLOCK + 1, BLOCK):
            block = hash((block, text[start : start + BLOCK]))
            cached = cached and (block in used or block in idle)
            hits += cached
            total += 1
            idle.pop(block, None)
            used[block] += 1
            mine.append(block)
        while idle and len(idle) + len(used) > blocks:
            idle.popitem(last=False)
        calls.append(mine)
    return hits / total


def test_a_window_that_holds_the_siblings_is_as_good_as_sorting_offline() -> None:
    # A fifth of 2,000 papers in a window of 10,000.
    asked = questions(400)
    room = 40 * 4500 // BLOCK
    best = hit_rate(sorted(asked), blocks=room, in_flight=50)
    assert best > 0.78
    assert hit_rate(asked, blocks=room, in_flight=50) < 0.15
    assert hit_rate(ordered(asked, 2000), blocks=room, in_flight=50) >= 0.9 * best


def test_a_smaller_window_helps_less() -> None:
    asked = questions(200)
    room = 20 * 4500 // BLOCK
    rates = [
        hit_rate(ordered(asked, window), blocks=room, in_flight=16) for window in (1, 100, 1000)
    ]
    assert rates[0] < 0.2 < rates[1] < 0.5
    assert rates[2] > 0.75


def test_siblings_carry_the_same_group_and_others_another() -> None:
    asked = questions(50)
    it: Orderer[str] = Orderer(100)
    groups: dict[str, set[int | None]] = {}
    for text in asked[:100]:
        it.add(text, text)
    for text in asked[100:]:
        item, group = it.pop()
        groups.setdefault(item.partition("\n\nQ")[0], set()).add(group)
        it.add(text, text)
    while it:
        item, group = it.pop()
        groups.setdefault(item.partition("\n\nQ")[0], set()).add(group)
    assert len(groups) == 50
    assert all(len(group) == 1 for group in groups.values())
    assert len(set.union(*groups.values())) == 50
    assert None not in set.union(*groups.values())


def test_texts_that_are_all_the_same_are_no_group() -> None:
    it: Orderer[int] = Orderer(10)
    for number in range(5):
        it.add("the same", number)
    assert [it.pop() for _ in range(5)] == [(number, None) for number in range(5)]


def test_nothing_to_pop() -> None:
    with pytest.raises(IndexError):
        Orderer[int](10).pop()


TEXTS = st.lists(st.text("ab", max_size=6), max_size=120)


@given(texts=TEXTS, window=st.integers(1, 40), eager=st.randoms(use_true_random=False))
def test_each_item_once_and_none_overtaken_by_more_than_the_window(
    texts: list[str], window: int, eager: random.Random
) -> None:
    it: Orderer[int] = Orderer(window)
    out: list[int] = []
    for number, text in enumerate(texts):
        while it and (it.full or eager.random() < 0.2):
            out.append(it.pop()[0])
        it.add(text, number)
        assert 1 <= len(it) <= window
    while it:
        out.append(it.pop()[0])
    assert sorted(out) == list(range(len(texts)))
    for place, number in enumerate(out):
        assert place <= number + window


@given(texts=TEXTS)
def test_what_fits_the_window_comes_sorted(texts: list[str]) -> None:
    assert ordered(texts, max(1, len(texts))) == sorted(texts)


@given(texts=TEXTS, window=st.integers(1, 40))
def test_the_sweep_goes_up_and_starts_anew(texts: list[str], window: int) -> None:
    """Against a plain list: the next greater text, or else the smallest."""
    it: Orderer[int] = Orderer(window)
    held: dict[int, str] = {}
    last, popped = "", 0
    for number, text in enumerate([*texts, *[""] * window]):
        if len(held) == window:
            item = it.pop()[0]
            if min(held) + window > popped:
                ahead = {(t, n) for n, t in held.items() if t >= last}
                expected = min(ahead) if ahead else min((t, n) for n, t in held.items())
                assert held[item] == expected[0]
                last = held[item]
            else:
                assert item == min(held)
            del held[item]
            popped += 1
        it.add(text, number)
        held[number] = text


@given(one=st.text("ab", max_size=40), other=st.text("ab", max_size=40))
def test_shared_prefix(one: str, other: str) -> None:
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    assert shared_prefix(one, other) == shared


def test_the_gain_is_what_sorting_brings() -> None:
    asked = questions(100)
    assert ordering_gain(asked) > 2000
    # A small sample of many shows it, too.
    assert ordering_gain(questions(400)[:200]) > 128
    assert ordering_gain(sorted(asked)) == 0.0
    alone = [text.partition("\n\nQ")[0] for text in questions(200, each=1)]
    assert ordering_gain([text.removeprefix(SYSTEM) for text in alone]) < 10
    assert ordering_gain([SYSTEM * 50 + text for text in alone]) < 10
    assert ordering_gain([]) == ordering_gain(["one"]) == 0.0


def test_the_key_is_the_same_in_every_process() -> None:
    assert prefix_key("abc") == 891568578
    assert prefix_key("systemabc", 6) == prefix_key("abc")
    assert prefix_key("a" * 300) == prefix_key("a" * 256) != prefix_key("a" * 255)
    assert prefix_key("\ud800") != prefix_key("\ud801")
