"""The grammars say what the schemas say: read back as regular expressions and compared."""

from __future__ import annotations

import datetime  # noqa: TC003 - pydantic reads the annotations
import enum
import json
import re
import uuid  # noqa: TC003 - pydantic reads the annotations
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from scaleinfer.backends._local_grammar import (
    MAX_ITEMS,
    MAX_WORDS,
    UnsupportedSchemaError,
    schema_to_grammar,
)
from scaleinfer.backends._local_numbers import integer_range, number_range

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|\{\d+(?:,\d+)?\}|[()|?]|\w+')


def _regex(expression: str, rules: dict[str, str]) -> str:
    """Return a Python regular expression of an EBNF expression without recursion."""
    out = []
    for token in _TOKEN.findall(expression):
        if token.startswith('"'):
            out.append("(?:" + re.escape(re.sub(r"\\(.)", r"\1", token[1:-1])) + ")")
        elif token == "(":
            out.append("(?:")
        elif token[0] in "[{)|?":
            out.append(token)
        else:
            out.append("(?:" + _regex(rules[token], rules) + ")")
    return "".join(out)


def _pattern(schema: dict[str, Any]) -> re.Pattern[str]:
    grammar = schema_to_grammar(schema)
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
    return re.compile(_regex(rules["root"], rules))


def _accepts(schema: dict[str, Any], value: object) -> bool:
    return _pattern(schema).fullmatch(json.dumps(value, ensure_ascii=False)) is not None


class Colour(enum.Enum):
    RED = "red"
    QUOTED = 'a "b" \\ c'


class Author(BaseModel):
    name: str
    born: datetime.date | None = None


class Paper(BaseModel):
    title: str = Field(max_length=40)
    year: int = Field(ge=1900, le=2030)
    kind: Literal["review", "article"]
    colour: Colour
    authors: list[Author]
    score: float = Field(ge=0, le=1)
    open_access: bool
    read: datetime.datetime
    id: uuid.UUID
    point: tuple[int, int]
    counts: dict[str, int]


PAPER: dict[str, Any] = {
    "title": "Ödland", "year": 1999, "kind": "review", "colour": 'a "b" \\ c',
    "authors": [{"name": "A. B", "born": "1970-01-31"}, {"name": "C", "born": None}],
    "score": 0.25, "open_access": True, "read": "2024-02-28T23:59:00Z",
    "id": "123e4567-e89b-42d3-a456-426614174000", "point": [1, -2], "counts": {"a": 1, "b": 20},
}  # fmt: skip


def test_pydantic_model_is_accepted_and_valid() -> None:
    Paper.model_validate(PAPER)
    assert _accepts(Paper.model_json_schema(), PAPER)


@pytest.mark.parametrize(
    "change",
    [
        {"year": 1899}, {"year": 2031}, {"kind": "book"}, {"colour": "blue"}, {"score": 1.5},
        {"score": -0.1}, {"open_access": "yes"}, {"read": "2024-02-30T23:59:00Z"}, {"id": "x"},
        {"point": [1]}, {"title": "x" * 41}, {"authors": [{"name": "A"}]}, {"counts": {"a": "b"}},
    ],
)  # fmt: skip
def test_wrong_values_are_not_accepted(change: dict[str, Any]) -> None:
    assert not _accepts(Paper.model_json_schema(), PAPER | change)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({}, "no type"),
        ({"type": "string", "pattern": "a+"}, "pattern"),
        ({"type": "string", "format": "hostname"}, "hostname"),
        ({"type": "integer", "multipleOf": 3}, "multipleOf"),
        ({"type": "number", "minimum": 0.5}, "0.5"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "bounds"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 10_000}, "10000"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"allOf": [{"type": "string"}, {"type": "string"}]}, "allOf"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"$ref": "http://elsewhere/x"}, "outside"),
        ({"enum": []}, "empty enum"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "'a'"),
        ({"type": ["string", "wibble"]}, "type"),
        ({"type": {"a": 1}}, "malformed"),
        ({"type": "object", "properties": 3}, "malformed"),
        ({"type": "array", "items": {"type": "string"}, "minItems": "x"}, "malformed"),
        ({"type": "integer", "minimum": "x"}, "malformed"),
        ({"anyOf": 3}, "malformed"),
        ({"enum": 3}, "malformed"),
    ],
)
def test_unsupported_schema_is_named(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedSchemaError, match=re.escape(named)):
        schema_to_grammar(schema)


def test_recursion_is_named() -> None:
    schema = {
        "$defs": {"Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}},
        "$ref": "#/$defs/Node",
    }
    with pytest.raises(UnsupportedSchemaError, match="recursive"):
        schema_to_grammar(schema)


def test_alternatives_that_cannot_be_expressed_are_left_out() -> None:
    schema = {"anyOf": [{"type": "string", "pattern": "x"}, {"type": "null"}]}
    assert _accepts(schema, None)
    assert not _accepts(schema, "x")


def test_default_bounds() -> None:
    assert _accepts({"type": "string"}, " ".join(["word"] * MAX_WORDS))
    assert not _accepts({"type": "string"}, " ".join(["word"] * (MAX_WORDS + 1)))
    numbers = {"type": "array", "items": {"type": "integer"}}
    assert _accepts(numbers, [1] * MAX_ITEMS)
    assert not _accepts(numbers, [1] * (MAX_ITEMS + 1))


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 8))
def test_string_and_array_lengths(low: int, extra: int, length: int) -> None:
    inside = low <= length <= low + extra
    text = {"type": "string", "minLength": low, "maxLength": low + extra}
    array = {
        "type": "array", "items": {"type": "null"}, "minItems": low, "maxItems": low + extra,
    }  # fmt: skip
    assert _accepts(text, "x" * length) == inside
    assert _accepts(array, [None] * length) == inside


@given(st.integers(-1200, 1200), st.integers(0, 1500), st.integers(-3000, 3000))
def test_integer_range_holds_exactly_its_integers(low: int, width: int, value: int) -> None:
    high = low + width
    pattern = _regex(integer_range(low, high, None, None), {})
    for number in (value, low, high, low - 1, high + 1, 0, -1):
        matched = re.fullmatch(pattern, str(number)) is not None
        assert matched == (low <= number <= high), number


@given(st.integers(-(10**15), 10**15))
def test_unbounded_integers(value: int) -> None:
    matched = re.fullmatch(_regex(integer_range(None, None, None, None), {}), str(value))
    assert (matched is not None) == (abs(value) < 10**15)


@given(
    st.integers(-20, 20), st.integers(0, 30), st.booleans(), st.booleans(),
    st.decimals(-60, 60, places=2, allow_nan=False),
)  # fmt: skip
def test_number_range_holds_its_numbers(
    low: int, width: int, low_open: bool, high_open: bool, value: object
) -> None:
    high = low + width
    bounds = (
        None if low_open else low, None if high_open else high,
        low if low_open else None, high if high_open else None,
    )  # fmt: skip
    if width == 0 and (low_open or high_open):
        with pytest.raises(ValueError, match="bounds"):
            number_range(*bounds)
        return
    number = float(str(value))
    above = number > low if low_open else number >= low
    below = number < high if high_open else number <= high
    text = repr(number + 0.0) if number else "0.0"
    matched = re.fullmatch(_regex(number_range(*bounds), {}), text) is not None
    assert matched == (above and below), text
