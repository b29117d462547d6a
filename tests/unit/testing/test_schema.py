from __future__ import annotations

import datetime  # noqa: TC003 - pydantic reads the annotations
import uuid  # noqa: TC003 - pydantic reads the annotations
from decimal import Decimal  # noqa: TC003 - pydantic reads the annotations
from enum import Enum, IntEnum
from random import Random
from typing import Annotated, Any, Literal

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from scaleinfer.testing._schema import UnsupportedSchemaError, generate


class Phase(Enum):
    SOLID = "solid"
    LIQUID = "liquid"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Source(BaseModel):
    title: str = Field(min_length=3, max_length=40)
    year: int = Field(ge=1900, le=2030)
    doi: str | None = None


class Tree(BaseModel):
    name: str
    children: list[Tree] = []
    parent: Tree | None = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(gt=0, lt=10)]


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: Annotated[float, Field(gt=0, le=90)]


class Everything(BaseModel):
    phase: Phase
    level: Level
    sources: list[Source] = Field(min_length=1, max_length=4)
    day: datetime.date
    moment: datetime.datetime
    time: datetime.time
    wait: datetime.timedelta
    identity: uuid.UUID
    price: Decimal
    share: float = Field(ge=0, lt=1)
    even: int = Field(multiple_of=2, ge=1, le=9)
    flag: bool
    nothing: None
    either: int | str | None
    pair: tuple[int, str]
    some: set[Phase]
    table: dict[str, float]
    fixed: Literal["a", 3, None]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    tree: Tree
    anything: Any = None


@settings(deadline=None, max_examples=60)
@given(seed=st.integers())
def test_models_accept_what_is_generated(seed: int) -> None:
    value = generate(Everything.model_json_schema(), Random(seed))
    Everything.model_validate_json(orjson.dumps(value))


@settings(deadline=None)
@given(seed=st.integers())
def test_recursion_comes_to_an_end(seed: int) -> None:
    value = generate(Tree.model_json_schema(), Random(seed))
    Tree.model_validate(value)


def test_the_same_seed_gives_the_same_value() -> None:
    schema = Everything.model_json_schema()
    assert generate(schema, Random(7)) == generate(schema, Random(7))
    assert len({str(generate(schema, Random(i))) for i in range(5)}) == 5


def test_optional_properties_come_and_go() -> None:
    schema = Source.model_json_schema()
    assert len({"doi" in generate(schema, Random(i)) for i in range(20)}) == 2


@pytest.mark.parametrize(
    "kind",
    [
        Annotated[int, Field(ge=5, le=5)],
        Annotated[int, Field(gt=-3)],
        Annotated[int, Field(lt=-300)],
        Annotated[float, Field(gt=1000)],
        Annotated[float, Field(multiple_of=0.5, ge=1, le=2)],
        Annotated[str, Field(min_length=50)],
        Annotated[str, Field(max_length=1)],
        Annotated[list[bool], Field(min_length=7)],
        Annotated[dict[str, int], Field(min_length=3)],
        Literal["only"],
    ],
)
def test_bounds_are_met(kind: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    for seed in range(30):
        adapter.validate_python(generate(adapter.json_schema(), Random(seed)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a+$"},
        {"not": {"type": "string"}},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": "#/$defs/Missing"},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 2},
        {"type": "widget"},
        {"$defs": {"A": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"},
    ],
)
def test_what_it_cannot_do_it_says(schema: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSchemaError):
        generate(schema, Random(1))


def test_all_of_is_merged() -> None:
    schema = {
        "$defs": {"Base": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}},
        "allOf": [{"$ref": "#/$defs/Base"}, {"properties": {"b": {"const": 2}}, "required": ["b"]}],
    }
    assert generate(schema, Random(1)) == {"a": 1, "b": 2}


def test_json_pointers_are_unescaped() -> None:
    schema = {"$defs": {"a/b~c": {"const": 1}}, "$ref": "#/$defs/a~1b~0c"}
    assert generate(schema, Random(1)) == 1
