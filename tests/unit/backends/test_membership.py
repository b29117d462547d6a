"""Membership: who joins, who leaves, what is checked when. The clock is passed in."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scaleinfer.backends._membership import Address, Change, Membership

SHARE = 0.01


def addresses(*names: str, model: str | None = "m") -> list[Address]:
    return [Address(f"http://{name}:8000/v1", model) for name in names]


def urls(*names: str) -> tuple[str, ...]:
    return tuple(address.url for address in addresses(*names))


def test_those_with_a_model_join_at_once_and_others_are_checked_first() -> None:
    membership = Membership()
    known, unknown = addresses("a")[0], addresses("b", model=None)[0]
    change = membership.seen([known, unknown], 0.0, ready=False)
    assert change == Change((known,), (), (unknown,))
    assert membership.members() == [known.url]
    assert membership.due(0.0, calls=0) == [unknown]
    assert membership.due(0.0, calls=0) == []  # it is being checked
    assert membership.checked(unknown, 1.0, ok=True)
    assert membership.members() == [known.url, unknown.url]


def test_a_set_whose_model_is_known_checks_nobody() -> None:
    membership = Membership()
    change = membership.seen(addresses("a", "b", model=None), 0.0, ready=True)
    assert len(change.joined) == 2
    assert membership.due(100.0, calls=10**6) == []


def test_one_that_is_missing_once_stays_and_twice_leaves() -> None:
    membership = Membership()
    membership.seen(addresses("a", "b"), 0.0, ready=True)
    assert membership.seen(addresses("a"), 1.0, ready=True) == Change()
    assert membership.seen(addresses("a", "b"), 2.0, ready=True) == Change()
    # A list that is being written anew is empty for a moment.
    assert membership.seen([], 3.0, ready=True) == Change()
    assert membership.seen(addresses("a", "b"), 4.0, ready=True) == Change()
    membership.seen(addresses("a"), 5.0, ready=True)
    assert membership.seen(addresses("a"), 6.0, ready=True).left == urls("b")
    assert membership.members() == list(urls("a"))


def test_one_whose_model_changes_leaves_and_comes_back_as_another() -> None:
    membership = Membership()
    membership.seen(addresses("a", model="old"), 0.0, ready=False)
    change = membership.seen(addresses("a", model="new"), 1.0, ready=False)
    assert change.left == urls("a")
    assert change.joined == tuple(addresses("a", model="new"))


def test_tags_that_change_change_nothing() -> None:
    membership = Membership()
    first, later = (Address("http://a/v1", "m", {"heartbeat": beat}) for beat in "12")
    membership.seen([first], 0.0, ready=True)
    assert membership.seen([later], 1.0, ready=True) == Change()


def test_checks_of_one_in_trouble_are_further_and_further_apart() -> None:
    membership = Membership()
    membership.seen(addresses("a", "b"), 0.0, ready=True)
    trouble, times, now = urls("a"), [], 0.0
    while now < 120:
        membership.trouble(trouble, now)
        for address in membership.due(now, calls=10**6):
            times.append(now)
            assert not membership.checked(address, now, ok=False)
        now += 0.1
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] < 3
    assert all(10 < gap < 20 for gap in gaps[4:])
    assert len(times) < 15


def test_one_that_is_fine_again_is_not_checked_and_begins_anew_after_a_while() -> None:
    membership = Membership()
    membership.seen(addresses("a", "b"), 0.0, ready=True)
    for second in range(100):
        membership.trouble(urls("a"), float(second))
        for address in membership.due(float(second), calls=10**6):
            membership.checked(address, float(second), ok=False)
    membership.trouble((), 100.0)
    assert membership.due(200.0, calls=10**6) == []
    membership.trouble(urls("a"), 200.0)
    assert membership.due(202.0, calls=10**6) == addresses("a")
    assert membership.checked(addresses("a")[0], 202.0, ok=True)


def test_checks_are_a_small_share_of_the_calls() -> None:
    membership = Membership(share=SHARE)
    names = [f"node{number}" for number in range(2_000)]
    membership.seen(addresses(*names), 0.0, ready=True)
    broken = urls(*names[:500])
    checks = calls = 0
    for tick in range(1_200):
        now = tick / 2
        calls += 50
        membership.trouble(broken, now)
        for address in membership.due(now, calls=calls):
            checks += 1
            membership.checked(address, now, ok=False)
        assert checks <= SHARE * calls
    assert checks > 0.9 * SHARE * calls  # so few calls allow no more


def test_all_in_trouble_are_checked_although_there_are_no_calls() -> None:
    membership = Membership()
    membership.seen(addresses("a", "b"), 0.0, ready=True)
    membership.trouble(urls("a", "b"), 0.0)
    assert set(membership.due(5.0, calls=0)) == set(addresses("a", "b"))


def test_a_check_of_one_that_left_meanwhile_says_nothing() -> None:
    membership = Membership()
    (new,) = addresses("a", model=None)
    membership.seen([new], 0.0, ready=False)
    assert membership.due(0.0, calls=0) == [new]
    membership.seen([], 1.0, ready=False)
    membership.seen([], 2.0, ready=False)
    assert not membership.checked(new, 3.0, ok=True)
    assert membership.members() == []


def test_which_tags_fit() -> None:
    address = Address("http://a/v1", tags={"role": "worker", "rack": "7"})
    assert address.fits({})
    assert address.fits({"role": "worker", "rack": ["6", "7"]})
    assert not address.fits({"role": "judge"})
    assert not address.fits({"role": ("a", "b")})
    assert not address.fits({"site": "x"})


NAMES = st.sampled_from(["a", "b", "c", "d", "e"])


class AnyCourse(RuleBasedStateMachine):
    """Lists, troubles and checks in any order, against what a follower would keep."""

    def __init__(self) -> None:
        super().__init__()
        self.membership = Membership(share=SHARE)
        self.now = 0.0
        self.calls = 0
        self.there: set[str] = set()  # as told by changes and checks
        self.listed: list[set[str]] = []
        self.running: list[Address] = []
        self.again = 0
        self.tried: set[Address] = set()
        self.troubled: set[str] = set()

    @rule(names=st.sets(NAMES), ready=st.booleans(), model=st.sampled_from([None, "m"]))
    def look(self, names: set[str], ready: bool, model: str | None) -> None:
        listed = addresses(*sorted(names), model=model)
        change = self.membership.seen(listed, self.now, ready=ready)
        self.listed.append({address.url for address in listed})
        for url in change.left:
            assert url in self.there
            self.there.remove(url)
        for address in change.joined:
            assert address.url not in self.there
            assert ready or model is not None
            self.there.add(address.url)
        assert not self.there & {address.url for address in change.unknown}

    @rule(names=st.sets(NAMES))
    def trouble(self, names: set[str]) -> None:
        self.troubled = set(urls(*names)) & self.there
        self.membership.trouble(self.troubled, self.now)

    @rule(seconds=st.floats(0, 100), calls=st.integers(0, 10_000))
    def go_on(self, seconds: float, calls: int) -> None:
        self.now += seconds
        self.calls += calls

    @rule(most=st.none() | st.integers(0, 3))
    def check(self, most: int | None) -> None:
        all_bad = not self.there - self.troubled
        due = self.membership.due(self.now, calls=self.calls, most=most)
        assert len(due) == len({address.url for address in due})
        assert most is None or len(due) <= most
        for address in due:
            # Members that answer are never checked.
            assert address.url not in self.there or address.url in self.troubled
        if not all_bad:
            self.again += sum(address.url in self.there for address in due)
            assert self.again <= SHARE * self.calls
        self.running += due

    @precondition(lambda self: self.running)
    @rule(ok=st.booleans(), data=st.data())
    def answer(self, ok: bool, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.running) - 1))
        address = self.running.pop(place)
        if self.membership.checked(address, self.now, ok=ok):
            assert ok
            self.there.add(address.url)

    @invariant()
    def members_are_those_that_were_told(self) -> None:
        assert set(self.membership.members()) == self.there
        assert self.there <= self.membership.urls()

    @invariant()
    def nobody_stays_who_was_missing_twice(self) -> None:
        if len(self.listed) >= 2:
            lately = self.listed[-1] | self.listed[-2]
            assert self.membership.urls() <= lately


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.sets(NAMES), min_size=1, max_size=10))
def test_a_list_that_does_not_change_any_more_is_who_is_there(lists: list[set[str]]) -> None:
    membership = Membership()
    for number, names in enumerate([*lists, lists[-1], lists[-1]]):
        membership.seen(addresses(*sorted(names)), float(number), ready=True)
    assert set(membership.members()) == set(urls(*lists[-1]))
