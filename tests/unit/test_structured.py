from __future__ import annotations

import contextlib
import json
from datetime import date
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from scaleinfer.errors import ConfigError, SchemaError
from scaleinfer.structured import AnswerSchema, closed, instruct, is_strict


class Phase(Enum):
    SOLID = "solid"
    LIQUID = "liquid"


class Author(BaseModel):
    name: str
    born: date | None = None


class Paper(BaseModel):
    title: str
    phase: Phase
    kind: Literal["theory", "experiment"]
    authors: list[Author] = []
    published: date = date(2026, 1, 1)
    score: float = Field(default=0, ge=0, le=1)


class Free(BaseModel):
    counts: dict[str, int]


class Node(BaseModel):
    name: str = "?"
    children: list[Node] = []


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Picky(BaseModel):
    a: int

    @field_validator("a")
    @classmethod
    def look_up(cls, value: int) -> int:
        return {1: 1}[value]


FULL = {
    "title": "On ice",
    "phase": "solid",
    "kind": "theory",
    "authors": [{"name": "A", "born": "1999-12-31"}, {"name": "B", "born": None}],
    "published": "2020-02-29",
    "score": 0.5,
}


def objects(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for part in schema for found in objects(part)]
    if not isinstance(schema, dict):
        return []
    inner = [found for part in schema.values() for found in objects(part)]
    return [schema, *inner] if isinstance(schema.get("properties"), dict) else inner


@pytest.mark.parametrize("model", [Paper, Author, Node, Free])
def test_every_object_with_named_fields_is_closed_and_complete(model: type[BaseModel]) -> None:
    found = objects(AnswerSchema(model).json_schema)
    assert found
    for schema in found:
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])


def test_free_keys_stay_open() -> None:
    schema = AnswerSchema(Free).json_schema
    assert schema["properties"]["counts"]["additionalProperties"] == {"type": "integer"}
    assert not is_strict(schema)
    assert not is_strict(AnswerSchema(Open).json_schema)
    assert AnswerSchema(Open).json_schema["additionalProperties"] is True
    assert is_strict(AnswerSchema(Paper).json_schema)
    assert is_strict(AnswerSchema(Node).json_schema)


def test_fields_with_the_names_of_json_schema_words() -> None:
    class Words(BaseModel):
        type: Literal["object"]
        properties: dict[str, int]
        default: Author
        required: bool
        enum: list[str]

    schema = AnswerSchema(Words).json_schema
    assert schema["required"] == ["type", "properties", "default", "required", "enum"]
    assert schema["$defs"]["Author"]["additionalProperties"] is False
    value = {"type": "object", "properties": {"a": 1}, "default": {"name": "A", "born": None}}
    parsed = AnswerSchema(Words).parse(json.dumps(value | {"required": True, "enum": ["e"]}))
    assert isinstance(parsed, Words)
    assert parsed.default == Author(name="A")


def test_closing_leaves_the_original_alone() -> None:
    schema = Paper.model_json_schema()
    before = json.dumps(schema)
    closed(schema)
    assert json.dumps(schema) == before


def test_values_come_typed() -> None:
    paper = AnswerSchema(Paper).parse(json.dumps(FULL))
    assert isinstance(paper, Paper)
    assert paper.phase is Phase.SOLID
    assert paper.published == date(2020, 2, 29)
    assert paper.authors == [Author(name="A", born=date(1999, 12, 31)), Author(name="B")]
    tree = AnswerSchema(Node).parse('{"name": "a", "children": [{"name": "b"}]}')
    assert isinstance(tree, Node)
    assert [child.name for child in tree.children] == ["b"]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "\n {}\n",
        "```json\n{}\n```",
        "Here you are:\n```\n{}\n```\nI hope that helps {smile}!",
        "Sets such as {a, b} aside, the answer is {}.",
        "<think>maybe {'title': 1} or {\"a\": 2}?</think>\n{}",
        "{} {}",
    ],
)
def test_prose_and_fences_are_tolerated(text: str) -> None:
    answer = json.dumps(FULL)
    assert AnswerSchema(Paper).parse(text.replace("{}", answer)) == Paper.model_validate(FULL)


@pytest.mark.parametrize("cut", range(1, 66))
def test_a_cut_answer_is_never_taken_for_a_smaller_one(cut: int) -> None:
    # Every field has a default, so the inner objects would satisfy the outer model.
    text = '{"name": "root", "children": [{"name": "b"}, {"name": "c", "x": 1}]}'
    assert len(text) > 66
    with pytest.raises(SchemaError):
        AnswerSchema(Node).parse(text[:-cut])


def test_an_endless_answer_is_one_bad_answer() -> None:
    for text in ('{"children": [' * 20_000, "{" * 20_000, "[" * 20_000 + "{}"):
        with pytest.raises(SchemaError):
            AnswerSchema(Author).parse(text)


def test_a_validator_that_fails_in_its_own_way_is_a_schema_error() -> None:
    with pytest.raises(SchemaError, match="KeyError"):
        AnswerSchema(Picky).parse('{"a": 2}')


@settings(max_examples=200)
@given(st.text(alphabet='{}[]":,ab1 \\'))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(SchemaError):
        assert isinstance(AnswerSchema(Author).parse(text), Author)


def test_what_is_wrong_is_said_by_field() -> None:
    wrong = FULL | {"phase": "gas", "authors": [{"name": 3}]}
    del wrong["kind"]
    with pytest.raises(SchemaError) as caught:
        AnswerSchema(Paper).parse(json.dumps(wrong))
    for part in ("phase: ", "'solid' or 'liquid'", "kind: Field required", "authors.0.name: "):
        assert part in caught.value.message
    with pytest.raises(SchemaError, match="the answer is empty"):
        AnswerSchema(Paper).parse("  ")
    with pytest.raises(SchemaError, match=r"not valid JSON .'I do not know"):
        AnswerSchema(Paper).parse("I do not know")


def test_many_complaints_are_cut() -> None:
    class Wide(BaseModel):
        xs: list[int]

    with pytest.raises(SchemaError, match="and 92 more"):
        AnswerSchema(Wide).parse(json.dumps({"xs": ["no"] * 100}))


def test_repair_shows_the_answer_the_complaint_and_the_schema() -> None:
    schema = AnswerSchema(Author)
    asked = [{"role": "user", "content": "Who?"}]
    error = SchemaError("name: Field required.", text="{}")
    messages = schema.repair(asked, error, cut=True)
    assert messages[0] is asked[0]
    assert messages[1] == {"role": "assistant", "content": "{}"}
    said = messages[2]["content"]
    assert "name: Field required" in said
    assert "cut off" in said
    assert json.dumps(schema.json_schema) in said
    assert len(asked) == 1
    assert "cut off" not in schema.repair(asked, error, cut=False)[2]["content"]


@pytest.mark.parametrize("content", ["Who?", [{"type": "text", "text": "Who?"}], None])
def test_the_schema_in_words_leaves_the_messages_alone(content: Any) -> None:
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": content}]
    before = json.dumps(asked)
    told = instruct(asked, {"type": "object"})
    assert json.dumps(asked) == before
    assert told[0] is asked[0]
    assert '{"type": "object"}' in json.dumps(told[1]["content"]).replace("\\", "")


@pytest.mark.parametrize("wrong", [dict, {"type": "object"}, "Paper", None, int])
def test_no_model(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="pydantic model class"):
        AnswerSchema(wrong)
