"""How many workers there should be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.fleet._scaling import Scaling, Wanted


def fixed(count: int = 4) -> Scaling:
    return Scaling(least=count, most=count, first=count, idle_s=10.0)


def elastic() -> Scaling:
    return Scaling(least=1, most=10, first=2, idle_s=10.0)


def look(scaling: Scaling, now: float, **given: int) -> Wanted:
    known = {"started": 0, "joined": 0, "tasks": 0, "room": 0}
    return scaling.look(now, **(known | given))


def test_a_fixed_fleet_is_started_at_once_and_replaces_what_is_lost() -> None:
    scaling = fixed()
    assert look(scaling, 0.0) == Wanted(start=4)
    assert look(scaling, 1.0, started=4, joined=4, tasks=10_000) == Wanted()
    scaling.ended(2.0, failed=True)
    assert look(scaling, 2.0, started=3, joined=3).start == 0
    assert look(scaling, 2.6, started=3, joined=3).start == 1
    assert look(scaling, 500.0, started=4, joined=4) == Wanted()


def test_an_elastic_fleet_grows_with_its_backlog_and_shrinks_when_idle() -> None:
    scaling = elastic()
    assert look(scaling, 0.0).start == 2
    assert look(scaling, 1.0, started=2, joined=2, tasks=500, room=200).start == 3
    assert look(scaling, 2.0, started=5, joined=5, tasks=10**6, room=500).start == 5
    assert look(scaling, 3.0, started=10, joined=10) == Wanted()
    assert look(scaling, 12.0, started=10, joined=10) == Wanted()
    assert look(scaling, 13.0, started=10, joined=10) == Wanted(end=9)


def test_a_pause_in_the_work_ends_nobody() -> None:
    scaling = elastic()
    look(scaling, 0.0, started=10, joined=10, tasks=10**6, room=500)
    assert look(scaling, 1.0, started=10, joined=10) == Wanted()
    assert look(scaling, 9.0, started=10, joined=10, tasks=10**6, room=500) == Wanted()
    assert look(scaling, 15.0, started=10, joined=10) == Wanted()


def test_before_the_first_work_the_first_workers_stay() -> None:
    scaling = elastic()
    assert look(scaling, 0.0, started=2) == Wanted()
    assert look(scaling, 1000.0, started=2, joined=2) == Wanted()


def test_workers_that_never_come_are_given_up_after_some_tries() -> None:
    scaling, now, starts = fixed(), 0.0, 0
    while not (wanted := look(scaling, now)).give_up:
        if wanted.start:
            starts += 1
            for _ in range(wanted.start):  # they fail together, and count as one
                scaling.ended(now, failed=True, came=False)
        now += 0.5
        assert now < 100
    assert starts == 5


def test_a_wrong_setting_is_given_up_at_once() -> None:
    scaling = fixed()
    look(scaling, 0.0)
    scaling.ended(1.0, failed=True, came=False, hopeless=True)
    assert look(scaling, 1.0).give_up


def test_workers_that_came_and_died_are_started_again_for_ever() -> None:
    scaling, now = fixed(1), 0.0
    for _ in range(50):
        while not look(scaling, now).start:
            now += 1.0
        scaling.ended(now, failed=True, came=True)
        assert not look(scaling, now).give_up
    assert not look(scaling, now + 59.0).start
    assert look(scaling, now + 61.0).start


@given(
    least=st.integers(0, 5),
    more=st.integers(0, 20),
    steps=st.lists(
        st.tuples(
            st.floats(0, 30), st.integers(0, 30), st.integers(0, 5000), st.booleans(), st.booleans()
        ),
        max_size=40,
    ),
)
def test_never_more_than_the_most_nor_fewer_than_the_least(
    least: int, more: int, steps: list[tuple[float, int, int, bool, bool]]
) -> None:
    most = max(1, least + more)
    scaling = Scaling(least=least, most=most, first=max(1, least), idle_s=5.0)
    now, started = 0.0, 0
    for step, joined, tasks, failed, came in steps:
        now += step
        wanted = scaling.look(
            now, started=started, joined=min(joined, started), tasks=tasks, room=64 * joined
        )
        assert not (wanted.start and wanted.end)
        assert started + wanted.start <= most
        assert wanted.end == 0 or started - wanted.end >= least
        started += wanted.start - wanted.end
        if failed and started:
            started -= 1
            scaling.ended(now, failed=True, came=came)
