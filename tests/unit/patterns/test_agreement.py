"""Agreement, against the worked examples of the papers the formulas come from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleinfer.errors import ConfigError
from scaleinfer.patterns import agreement_of, cohen_kappa, fleiss_kappa, krippendorff_alpha

# Fleiss (1971), table 1: 30 patients, 6 psychiatrists each; depression, personality disorder,
# schizophrenia, neurosis, other.
FLEISS_1971 = [
    [0, 0, 0, 6, 0], [0, 3, 0, 0, 3], [0, 1, 4, 0, 1], [0, 0, 0, 0, 6], [0, 3, 0, 3, 0],
    [2, 0, 4, 0, 0], [0, 0, 4, 0, 2], [2, 0, 3, 1, 0], [2, 0, 0, 4, 0], [0, 0, 0, 0, 6],
    [1, 0, 0, 5, 0], [1, 1, 0, 4, 0], [0, 3, 3, 0, 0], [1, 0, 0, 5, 0], [0, 2, 0, 3, 1],
    [0, 0, 5, 0, 1], [3, 0, 0, 1, 2], [5, 1, 0, 0, 0], [0, 2, 0, 4, 0], [1, 0, 2, 0, 3],
    [0, 0, 0, 0, 6], [0, 1, 0, 5, 0], [0, 2, 0, 1, 3], [2, 0, 0, 4, 0], [1, 0, 0, 4, 1],
    [0, 5, 0, 1, 0], [4, 0, 0, 0, 2], [0, 2, 0, 4, 0], [1, 0, 5, 0, 0], [0, 0, 0, 0, 6],
]  # fmt: skip

# Krippendorff (2011), section C: four observers, twelve units, ratings missing.
N = None
KRIPPENDORFF_2011 = list(
    zip(
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
        strict=True,
    )
)


def test_cohen_of_a_textbook_table() -> None:
    # Cohen (1960), table 2, as shares of 100: categories of three kinds, p_o 0.29 + ...
    table = {
        ("a", "a"): 88, ("a", "b"): 10, ("a", "c"): 2,
        ("b", "a"): 14, ("b", "b"): 40, ("b", "c"): 6,
        ("c", "a"): 18, ("c", "b"): 10, ("c", "c"): 12,
    }  # fmt: skip
    first, second = zip(*(pair for pair, count in table.items() for _ in range(count)), strict=True)
    # p_o = 140/200 = .70, p_e = (.5*.6 + .3*.3 + .2*.1) = .41, kappa = .29/.59
    assert cohen_kappa(first, second) == pytest.approx(0.29 / 0.59)
    assert round(cohen_kappa(first, second) or 0, 3) == 0.492


def test_fleiss_of_his_own_example() -> None:
    assert round(fleiss_kappa(FLEISS_1971) or 0, 3) == 0.430


@pytest.mark.parametrize(
    ("level", "alpha"),
    [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)],
)
def test_krippendorff_of_his_own_example(level: Any, alpha: float) -> None:
    assert round(krippendorff_alpha(KRIPPENDORFF_2011, level=level) or 0, 3) == alpha


def test_items_that_one_rater_left_out_do_not_count() -> None:
    assert cohen_kappa(["a", "b", None, "a"], ["a", "b", "a", None]) == 1


def test_one_category_only_says_nothing() -> None:
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert fleiss_kappa([[3, 0], [3, 0]]) is None
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None


def test_nothing_says_nothing() -> None:
    assert cohen_kappa([], []) is None
    assert fleiss_kappa([]) is None
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([["a", None], [None, "b"]]) is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: cohen_kappa(["a"], []),
        lambda: fleiss_kappa([[1, 2], [2, 2]]),
        lambda: fleiss_kappa([[1, 0]]),
        lambda: krippendorff_alpha([["a", "b"]], level="cardinal"),  # type: ignore[arg-type]  # wrong on purpose
        lambda: krippendorff_alpha([["a", "b"]], level="interval"),
        lambda: krippendorff_alpha([[-1, 1]], level="ratio"),
        lambda: agreement_of({"a": [1], "b": [1, 2]}),
    ],
)
def test_bad_ratings(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong()


def test_agreement_of_three_raters() -> None:
    agreement = agreement_of(
        {
            "a": ["yes", "no", "yes", None],
            "b": ["yes", "no", "no", "no"],
            "c": ["yes", "no", "yes", None],
        }
    )
    assert agreement.raters == ("a", "b", "c")
    assert agreement.items == 3
    assert agreement.pairs["a", "c"] == (1.0, 1.0, 3)
    share, kappa, items = agreement.pairs["a", "b"]
    assert share == pytest.approx(2 / 3)
    assert items == 3
    # p_o = 2/3, p_e = 2/3 * 1/3 + 1/3 * 2/3 = 4/9
    assert kappa == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert "a / b  0.667    0.4      3" in str(agreement)


LABELS = st.lists(st.sampled_from("abc"), min_size=2, max_size=30)


@given(LABELS)
def test_perfect_agreement_is_one(labels: list[str]) -> None:
    expected = 1 if len(set(labels)) > 1 else None
    counts = [[2 * (label == name) for name in "abc"] for label in labels]
    assert cohen_kappa(labels, labels) == expected
    assert fleiss_kappa(counts) == expected
    assert krippendorff_alpha(zip(labels, labels, strict=True)) == expected


RATINGS = st.lists(
    st.lists(st.sampled_from([1, 2, 3, 4, None]), min_size=3, max_size=3), min_size=1, max_size=20
)


@given(RATINGS, st.sampled_from(["nominal", "ordinal", "interval", "ratio"]), st.randoms())
def test_the_order_of_raters_and_items_does_not_matter(
    ratings: list[list[int | None]], level: Any, random: Any
) -> None:
    alpha = krippendorff_alpha(ratings, level=level)
    shuffled = [random.sample(unit, len(unit)) for unit in ratings]
    random.shuffle(shuffled)
    assert krippendorff_alpha(shuffled, level=level) == (
        alpha if alpha is None else pytest.approx(alpha)
    )
    assert alpha is None or alpha <= 1
