"""Aggregators over results and plain values."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, model_validator

from scaleinfer.errors import ConfigError, Overloaded, Permanent, SchemaError
from scaleinfer.map_result import MapResult
from scaleinfer.patterns import (
    EnsembleOutcome,
    failure_report,
    group_by,
    majority_vote,
    merge,
    statistics,
    top_k,
)
from scaleinfer.results import Result


def result(index: int, value: Any, **more: Any) -> Result:
    return Result(key=str(index), index=index, ok=True, value=value, text=str(value), **more)


def failed(index: int, error: Any) -> Result:
    return Result(key=str(index), index=index, error=error)


RESULTS = [
    result(0, "yes", item={"lab": "a"}, model="small"),
    result(1, "no", item={"lab": "b"}, model="large"),
    result(2, "Yes.", item={"lab": "a"}, model="large"),
    failed(3, Permanent("too long", status=400, hint="Shorten it.")),
]


class Molecule(BaseModel):
    name: str
    mass: float | None = None
    tags: list[str] = Field(default_factory=list)


def test_majority_of_results() -> None:
    tally = majority_vote(RESULTS)
    assert (tally.value, tally.voters) == ("yes", 3)
    assert tally.confidence == pytest.approx(2 / 3)
    assert majority_vote(["a", "b", "b"]).value == "b"


def test_majority_of_something_else_and_with_weights() -> None:
    tally = majority_vote(RESULTS, answer=lambda one: one.model)
    assert tally.votes == {"large": 2, "small": 1}
    heavy = majority_vote(RESULTS, weight=lambda one: 5.0 if one.value == "no" else 1.0)
    assert heavy.value == "no"


def test_top_k() -> None:
    results = [result(0, 3), result(1, 5), result(2, 5), result(3, None), result(4, math.nan)]
    assert [one.index for one in top_k(results, 2)] == [1, 2]
    assert [one.index for one in top_k(results, 9, largest=False)] == [0, 1, 2]
    assert top_k([1, 3, 2], 1) == [3]


def test_top_k_by_field_or_function() -> None:
    molecules = [Molecule(name="a", mass=2), Molecule(name="bb", mass=1), Molecule(name="c")]
    assert [m.name for m in top_k(molecules, 5, key="mass")] == ["a", "bb"]
    assert [m.name for m in top_k(molecules, 1, key=lambda m: len(m.name))] == ["bb"]


def test_statistics_against_known_numbers() -> None:
    found = statistics([result(0, 1), result(1, 2), result(2, 4), result(3, 9), RESULTS[3]])
    assert (found.count, found.missing, found.mean) == (4, 1, 4)
    assert found.sd == pytest.approx(math.sqrt((9 + 4 + 0 + 25) / 3))
    # As numpy.percentile([1, 2, 4, 9], [0, 25, 50, 75, 100]).
    quartiles = (found.minimum, found.q1, found.median, found.q3, found.maximum)
    assert quartiles == (1, 1.75, 3, 5.25, 9)


def test_statistics_of_few() -> None:
    assert statistics([]).mean is None
    one = statistics([7.5, None, math.nan])
    assert (one.count, one.missing, one.mean, one.sd, one.q1) == (1, 2, 7.5, None, 7.5)
    assert statistics([Molecule(name="a", mass=3), Molecule(name="b")], of="mass").mean == 3


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_statistics_are_in_order(values: list[float]) -> None:
    found = statistics(values)
    ordered = [found.minimum, found.q1, found.median, found.q3, found.maximum]
    assert ordered == sorted(ordered, key=float)  # type: ignore[arg-type]  # none is None here
    assert found.count == len(values)


def test_merge_of_objects() -> None:
    merged = merge(
        [
            result(0, Molecule(name="Ethanol", mass=46.07, tags=["alcohol", "solvent"])),
            result(1, Molecule(name="ethanol", mass=46.1, tags=["Solvent", "fuel"])),
            result(2, Molecule(name="methanol", mass=46.1)),
            RESULTS[3],
        ]
    )
    assert merged.value == Molecule(name="Ethanol", mass=46.1, tags=["alcohol", "solvent", "fuel"])
    assert merged.sources == 3
    assert [(c.path, c.chosen, c.tied) for c in merged.conflicts] == [
        ("name", "Ethanol", False),
        ("mass", 46.1, False),
    ]
    assert merged.conflicts[0].votes == {"ethanol": 2, "methanol": 1}


def test_merge_of_nested_dicts() -> None:
    merged = merge(
        [
            {"sample": {"mass": 1.0, "unit": "g"}, "note": None},
            {"sample": {"mass": 3.0, "unit": "g"}, "note": "dry"},
            {"sample": {"mass": 2.0}, "extra": 1},
        ],
        how={"sample.mass": max},
    )
    assert merged.value == {"sample": {"mass": 3.0, "unit": "g"}, "note": "dry", "extra": 1}
    assert merged.conflicts == ()


def test_a_tie_is_reported() -> None:
    [conflict] = merge([{"a": 1}, {"a": 2}]).conflicts
    assert (conflict.chosen, conflict.tied) == (1, True)


class Span(BaseModel):
    low: int
    high: int

    @model_validator(mode="after")
    def in_order(self) -> Span:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: merge([]),
        lambda: merge(["text"]),
        lambda: merge([{"a": 1}], how={"b": max}),
        lambda: merge(
            [Span(low=5, high=6), Span(low=1, high=2), Span(low=5, high=7), Span(low=0, high=2)]
        ),
        lambda: top_k([1], 0),
        lambda: top_k(["a"], 1),
        lambda: statistics(["a"]),
    ],
)
def test_bad_input(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong()


def test_failures_by_kind() -> None:
    results = [
        RESULTS[0],
        failed(4, Overloaded("full", status=503)),
        failed(2, SchemaError("no JSON")),
        failed(1, Overloaded("full", status=503, hint="Wait.")),
    ]
    report = failure_report(results)
    assert [(kind.kind, kind.count) for kind in report] == [
        ("Overloaded 503", 2),
        ("SchemaError", 1),
    ]
    assert report[0].indices == (4, 1)
    assert report.indices == [1, 2, 4]
    assert "item 4: full" in repr(report)
    assert "SchemaError" in report._repr_html_()
    assert list(report.to_pandas()["count"]) == [2, 1]
    assert not failure_report([RESULTS[0], "plain"])
    assert repr(failure_report([])) == "No failures."


def test_failures_of_a_pattern() -> None:
    outcomes = [EnsembleOutcome(RESULTS[0], "yes"), EnsembleOutcome(RESULTS[3])]
    assert failure_report(outcomes)[0].kind == "Permanent 400"
    assert majority_vote(outcomes).voters == 1


def test_groups() -> None:
    groups = group_by(RESULTS, "lab")
    assert {name: [one.index for one in group] for name, group in groups.items()} == {
        "a": [0, 2],
        "b": [1],
        None: [3],
    }
    by_model = group_by(RESULTS, lambda one: one.model)
    assert list(by_model) == ["small", "large", None]
    molecules = [result(0, Molecule(name="x", mass=1), item="x")]
    assert list(group_by(molecules, "mass")) == [1]


def test_a_map_result_is_taken_as_it_is() -> None:
    stats: Any = None
    assert majority_vote(MapResult(RESULTS, stats)).value == "yes"
