"""What a user may send is divided among workers, and never more than that, whatever gets lost."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scaleinfer.fleet._shares import ShareDesk, Shares

LASTS = 10.0


def steady(shares: Shares, workers: list[str], now: float = 0.0) -> dict[str, int]:
    """Have the workers ask until nothing changes any more."""
    held = dict.fromkeys(workers, 0)
    for turn in range(20):
        for worker in workers:
            held[worker] = shares.heard(worker, held[worker], now + turn, lasts_s=LASTS)
    return held


@pytest.mark.parametrize(
    ("per_second", "workers", "expected"),
    [
        (10, 1, [10]),
        (10, 2, [5, 5]),
        (10, 3, [4, 3, 3]),
        (10, 12, [1] * 10 + [0, 0]),
        (2.5, 2, [1, 1]),
        (0.5, 2, [1, 0]),
    ],
)
def test_all_have_the_same(per_second: float, workers: int, expected: list[int]) -> None:
    found = steady(Shares(per_second), [f"w{number:02}" for number in range(workers)])
    assert list(found.values()) == expected


def test_a_share_is_lowered_before_another_is_raised() -> None:
    shares = Shares(10)
    assert shares.heard("a", 0, 0.0, lasts_s=LASTS) == 10
    assert shares.heard("b", 0, 0.1, lasts_s=LASTS) == 0
    assert shares.heard("a", 10, 0.2, lasts_s=LASTS) == 5
    assert shares.heard("b", 0, 0.3, lasts_s=LASTS) == 0, "a may not have heard of it yet"
    assert shares.heard("a", 5, 0.4, lasts_s=LASTS) == 5
    assert shares.heard("b", 0, 0.5, lasts_s=LASTS) == 0, "the gateway remembers a second"
    assert shares.heard("b", 0, 1.7, lasts_s=LASTS) == 5


def test_a_lost_worker_keeps_its_share_until_that_has_run_out() -> None:
    shares = Shares(10)
    steady(shares, ["a", "b"])
    shares.gone("a")
    assert shares.heard("b", 5, 20.0, lasts_s=LASTS) == 5
    assert shares.heard("b", 5, 29.1, lasts_s=LASTS) == 5
    assert shares.heard("b", 5, 30.5, lasts_s=LASTS) == 10


def test_one_that_leaves_gives_its_share_back() -> None:
    shares = Shares(10)
    steady(shares, ["a", "b"])
    shares.left("a", 20.0)
    assert shares.heard("b", 5, 20.1, lasts_s=LASTS) == 5
    assert shares.heard("b", 5, 21.3, lasts_s=LASTS) == 10


def test_limits_have_names() -> None:
    desk = ShareDesk()
    rates = {"one": (10, 0), "two": (4, 0)}
    assert desk.heard("a", rates, 0.0, lasts_s=LASTS) == {"one": 10, "two": 4}
    assert desk.heard("b", {"one": (10, 0)}, 0.0, lasts_s=LASTS) == {"one": 0}
    desk.left("a", 1.0)
    assert desk.heard("b", {"one": (10, 0)}, 3.0, lasts_s=LASTS) == {"one": 10}


@dataclass
class Worker:
    """A worker as it is: what it uses, until when, and what it has sent."""

    share: int = 0
    until: float = 0.0

    def now_has(self, now: float) -> int:
        return self.share if now < self.until else 0


class Fleet(RuleBasedStateMachine):
    """Workers that join, leave, fall silent, and whose messages and replies are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.shares = Shares(10)
        self.workers: dict[str, Worker] = {}
        self.made = 0
        self.most: list[tuple[float, str, int]] = []

    @rule(seconds=st.floats(0.01, 4.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def join(self) -> None:
        self.made += 1
        self.workers[f"w{self.made}"] = Worker()

    @rule(number=st.integers(0, 30), arrives=st.booleans(), replied=st.booleans())
    def speak(self, number: int, arrives: bool, replied: bool) -> None:
        if not self.workers:
            return
        name = sorted(self.workers)[number % len(self.workers)]
        worker = self.workers[name]
        if not arrives:
            return
        share = self.shares.heard(name, worker.now_has(self.now), self.now, lasts_s=LASTS)
        if replied:
            worker.share, worker.until = share, self.now + LASTS

    @rule(number=st.integers(0, 30))
    def leave(self, number: int) -> None:
        if self.workers:
            name = sorted(self.workers)[number % len(self.workers)]
            del self.workers[name]
            self.shares.left(name, self.now)

    @rule(number=st.integers(0, 30))
    def give_up(self, number: int) -> None:
        """The coordinator gives one up that may still be there, and may even speak again."""
        if self.workers:
            self.shares.gone(sorted(self.workers)[number % len(self.workers)])

    @invariant()
    def never_above_the_limit(self) -> None:
        """Not now, and not within the second that the gateway remembers."""
        for name, worker in self.workers.items():
            self.most.append((self.now, name, worker.now_has(self.now)))
        self.most = [entry for entry in self.most if self.now - entry[0] <= 1.0]
        used: dict[str, int] = {}
        for _, name, share in self.most:
            used[name] = max(used.get(name, 0), share)
        assert sum(used.values()) <= self.shares.limit


TestFleet = Fleet.TestCase


@given(st.lists(st.integers(1, 15), min_size=1, max_size=5))
def test_the_whole_limit_is_used_in_the_end(sizes: list[int]) -> None:
    shares, now = Shares(10), 0.0
    for size in sizes:
        workers = [f"w{number}" for number in range(size)]
        for gone in [name for name in list(shares._holders) if name not in workers]:
            shares.left(gone, now)
        held = dict.fromkeys(workers, 0)
        for _ in range(8):
            now += 1.0
            for worker in workers:
                held[worker] = shares.heard(worker, held[worker], now, lasts_s=LASTS)
        assert sum(held.values()) == 10
