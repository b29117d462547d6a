"""Clusters of meaning and their entropy."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.patterns._meaning import Clusters, cosine, entropy_of, near


def clustered(meanings: list[Any]) -> tuple[tuple[int, ...], ...]:
    clusters = Clusters()
    for number, meaning in enumerate(meanings):
        same = [meaning == meanings[first] for first in clusters.representatives]
        clusters.place(number, same)
    return clusters.sorted()


def test_the_largest_comes_first() -> None:
    assert clustered(list("abcbb")) == ((1, 3, 4), (0,), (2,))
    clusters = Clusters()
    clusters.place(0, [])
    clusters.place(1, [False])
    clusters.join(2, 1)
    assert clusters.sorted() == ((1, 2), (0,))


def test_an_answer_joins_the_first_that_fits() -> None:
    clusters = Clusters()
    clusters.place(0, [])
    clusters.place(1, [False])
    clusters.place(2, [True, True])
    assert clusters.sorted() == ((0, 2), (1,))


def test_entropy_by_hand() -> None:
    ones = [1.0] * 4
    assert entropy_of([(0, 1, 2, 3)], ones) == 0
    assert math.copysign(1, entropy_of([(0, 1, 2, 3)], ones)) == 1
    assert entropy_of([(0, 1), (2, 3)], ones) == pytest.approx(math.log(2))
    assert entropy_of([(0,), (1,), (2,), (3,)], ones) == pytest.approx(math.log(4))
    # Three quarters and one quarter.
    assert entropy_of([(0, 1, 2), (3,)], ones) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )
    # The same shares, by weights.
    assert entropy_of([(0,), (1,)], [0.6, 0.2]) == pytest.approx(
        entropy_of([(0, 1, 2), (3,)], ones)
    )


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_entropy_is_between_none_and_the_most(meanings: list[int]) -> None:
    clusters = clustered(meanings)
    assert sorted(answer for cluster in clusters for answer in cluster) == list(
        range(len(meanings))
    )
    assert len(clusters) == len(set(meanings))
    entropy = entropy_of(clusters, [1.0] * len(meanings))
    assert 0 <= entropy <= math.log(len(meanings)) + 1e-12
    # Renaming the meanings changes nothing.
    assert clustered([-one for one in meanings]) == clusters


def test_near_vectors() -> None:
    vectors = [[1.0, 0.0], [0.0, 2.0], [3.0, 0.3], [0.0, 0.0]]
    assert cosine(vectors[0], vectors[1]) == 0
    assert cosine(vectors[0], vectors[2]) == pytest.approx(1 / math.sqrt(1.01))
    assert cosine(vectors[0], vectors[3]) == 0
    assert near(vectors, 0.9).sorted() == ((0, 2), (1,), (3,))
    assert near(vectors, 0.999).sorted() == ((0,), (1,), (2,), (3,))
