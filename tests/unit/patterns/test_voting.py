"""Votes: the tally, and asking no more voters than can matter."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from scaleinfer.patterns._voting import Election, Tally, count_votes, normalised

ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=12)


class Matter(BaseModel):
    state: Literal["gas", "liquid"]


def run(
    answers: list[Any], weights: list[float], ceilings: list[float], random: Any, *, early: bool
) -> tuple[Tally, int]:
    """Hold an election in which the voters answer in any order."""
    election = Election(ceilings, early=early)
    asked = election.ask()
    flying = list(asked)
    while flying:
        voter = flying.pop(random.randrange(len(flying)))
        election.cast(voter, answers[voter], weights[voter])
        more = election.ask()
        flying += more
        asked += more
    assert election.settled
    assert election.in_flight == 0
    assert election.unasked == len(answers) - len(asked)
    return election.tally(), len(asked)


@given(ANSWERS, st.randoms())
def test_stopping_early_never_changes_the_winner(answers: list[Any], random: Any) -> None:
    ones = [1.0] * len(answers)
    early, few = run(answers, ones, ones, random, early=True)
    full, all_of_them = run(answers, ones, ones, random, early=False)
    assert (early.value, early.tied) == (full.value, full.tied)
    assert few <= all_of_them == len(answers)
    assert full == count_votes(zip(answers, ones, strict=True))


# Eighths add up without rounding, so that ties are ties.
EIGHTHS = st.integers(0, 16).map(lambda n: n / 8)
WEIGHTED = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", None]), EIGHTHS, EIGHTHS), min_size=1, max_size=9
)


@given(WEIGHTED, st.randoms())
def test_nor_with_weights(voters: list[tuple[Any, float, float]], random: Any) -> None:
    answers = [answer for answer, _, _ in voters]
    weights = [min(pair) for _, *pair in voters]
    ceilings = [max(pair) for _, *pair in voters]
    early, _ = run(answers, weights, ceilings, random, early=True)
    full, _ = run(answers, weights, ceilings, random, early=False)
    assert full.votes.get(normalised(early.value), 0.0) == max(full.votes.values(), default=0.0)
    if any(full.votes.values()):
        assert early.value == full.value


@given(ANSWERS, st.randoms())
def test_asking_at_once_costs_no_more_than_one_by_one(answers: list[Any], random: Any) -> None:
    ones = [1.0] * len(answers)
    _, together = run(answers, ones, ones, random, early=True)
    # Answers land in another order than they were asked in, but those asked are a beginning of
    # the voters; the shortest beginning that settles it is what one by one would take.
    one_by_one = next(
        n
        for n in range(len(answers) + 1)
        if n == len(answers) or margin(answers[:n]) > len(answers) - n
    )
    assert together == one_by_one


def margin(answers: list[Any]) -> float:
    sums = [*count_votes((answer, 1.0) for answer in answers).votes.values(), 0.0, 0.0]
    return sums[0] - sums[1]


def test_the_first_round_is_the_smallest_majority() -> None:
    for n, first in ((1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (9, 5)):
        assert Election([1.0] * n).ask() == list(range(first))


def test_heavy_voters_are_asked_first() -> None:
    election = Election([1.0, 1.0, 5.0])
    assert election.ask() == [2]
    election.cast(2, "a", 5.0)
    assert election.settled
    assert election.ask() == []


def test_a_light_vote_of_a_heavy_voter_asks_for_more() -> None:
    election = Election([1.0, 1.0, 5.0])
    assert election.ask() == [2]
    election.cast(2, "a", 0.5)
    assert election.ask() == [0]
    election.cast(0, "b", 1.0)
    assert election.ask() == [1]


def test_the_first_given_wins_a_tie() -> None:
    tally = count_votes([("b", 1), ("a", 1), (None, 1), ("a.", 1), ("b", 1)])
    assert tally.value == "b"
    assert tally.tied == ("b", "a")
    assert tally.confidence == 0.5
    assert tally.voters == 4
    # Two of the six pairs agree.
    assert tally.agreement == pytest.approx(1 / 3)


def test_equal_votes_tie_whatever_the_order_of_adding() -> None:
    tally = count_votes([("a", 0.1), ("b", 0.3), ("a", 0.2), ("b", 0.1), ("a", 0.3), ("b", 0.2)])
    assert tally.tied == ("a", "b")


def test_nobody_voted() -> None:
    assert count_votes([(None, 1.0)]) == Tally(None, {}, 0.0, 0.0, (), 0)
    assert count_votes([("a", 1.0)]).agreement == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes.", " yes"),
        ("The  Earth\n", "the earth!"),
        ('"Yes"', "yes"),
        ("\uff59es", "yes"),
        (Matter(state="gas"), {"state": "gas"}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"x", "y"}, {"y", "x"}),
    ],
)
def test_same_answers(one: Any, other: Any) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("yes", "no"),
        (1, 2),
        (Matter(state="gas"), Matter(state="liquid")),
        ("-5", "5"),
        (1, True),
        # Carbon monoxide and cobalt; cyclohexane and benzene; choices of a list.
        ("CO", "Co"),
        ("C1CCCCC1", "c1ccccc1"),
        ("A", "a"),
        (".5", "5"),
    ],
)
def test_different_answers(one: Any, other: Any) -> None:
    assert normalised(one) != normalised(other)
