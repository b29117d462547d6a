"""Rubrics: schema, words and totals; whom a pattern asks."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from scaleinfer.errors import ConfigError
from scaleinfer.patterns import Criterion, Member, Rubric
from scaleinfer.patterns._members import for_map, members_of
from scaleinfer.structured import AnswerSchema

RUBRIC = Rubric(
    (
        Criterion("scientific merit", "Is it new?", weight=3),
        Criterion("brevity", low=0, high=2, levels={0: "rambling", 2: "terse"}),
    )
)


def test_the_schema_speaks_of_the_criteria() -> None:
    schema = AnswerSchema(RUBRIC.schema())
    properties = schema.json_schema["properties"]
    # Reasons come first, so that the scores rest on them.
    assert list(properties) == ["reasons", "scientific merit", "brevity"]
    assert properties["scientific merit"]["enum"] == [1, 2, 3, 4, 5]
    assert properties["brevity"]["enum"] == [0, 1, 2]
    scores = schema.parse('{"reasons": "short", "scientific merit": 4, "brevity": 2}')
    assert RUBRIC.read(scores) == {"scientific merit": 4, "brevity": 2}


def test_scores_off_the_scale_do_not_fit() -> None:
    model = Rubric((Criterion("a"),), reasons=False).schema()
    assert list(model.model_json_schema()["properties"]) == ["a"]
    with pytest.raises(ValidationError):
        model.model_validate({"a": 6})
    with pytest.raises(ValidationError):
        model.model_validate({"a": 2.5})


def test_the_total_is_a_weighted_place_on_the_scales() -> None:
    assert RUBRIC.total({"scientific merit": 5, "brevity": 2}) == 1
    assert RUBRIC.total({"scientific merit": 1, "brevity": 0}) == 0
    assert RUBRIC.total({"scientific merit": 3, "brevity": 2}) == pytest.approx((3 * 0.5 + 1) / 4)


def test_the_prompt_has_it_all() -> None:
    prompt = RUBRIC.prompt("My work.", "Do it.")
    for part in (
        "scientific merit, from 1 to 5: Is it new?",
        "  0: rambling",
        "My work.",
        "Do it.",
    ):
        assert part in prompt
    assert "The task" not in RUBRIC.prompt("My work.", None)


def test_rubrics_in_short() -> None:
    assert Rubric.of({"clarity": "Is it clear?"}).criteria == (
        Criterion("clarity", "Is it clear?"),
    )
    assert Rubric.of(["a", Criterion("b")]).criteria == (Criterion("a"), Criterion("b"))
    assert Rubric.of(Criterion("a")).criteria == (Criterion("a"),)
    assert Rubric.of(RUBRIC) is RUBRIC


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Rubric(()),
        lambda: Rubric.of({}),
        lambda: Rubric.of("clarity"),
        lambda: Rubric.of([1]),
        lambda: Rubric((Criterion("a"), Criterion("a"))),
        lambda: Criterion(""),
        lambda: Criterion("reasons"),
        lambda: Criterion("a", low=5, high=5),
        lambda: Criterion("a", low=0, high=1000),
        lambda: Criterion("a", levels={6: "beyond"}),
        lambda: Criterion("a", weight=0),
        lambda: members_of([Member("a", sampling={"heat": 1})]),
        lambda: members_of([Member("a"), Member("b", name="a")]),
    ],
)
def test_what_cannot_be(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong()


class Server:
    endpoint = "http://here"
    model = "own"


def test_members_have_names() -> None:
    server = Server()
    models = ["small", "http://there/v1", server, Member("large", backend="http://there/v1")]
    names = [member.name for member in members_of(models)]
    assert names == ["small", "http://there/v1", "own", "large at http://there/v1"]
    assert members_of("small")[0].model == "small"
    assert members_of(None) == (Member(name="default"),)


def test_the_map_asks_where_its_members_are() -> None:
    members = members_of([Member("a", backend="http://one"), Member("b", backend="http://two")])
    options, seen = for_map({}, members, "poll")
    assert options == {"name": "poll", "backend": "http://one", "model": "a"}
    assert [member.backend for member in seen] == [None, "http://two"]
    # A map that has an endpoint of its own keeps it.
    options, seen = for_map({"base_url": "http://own", "name": "mine"}, members, "poll")
    assert options == {"name": "mine", "base_url": "http://own"}
    assert seen == members
    options, seen = for_map({"backend": "http://two", "model": "c"}, members, "poll")
    assert options["model"] == "c"
    assert [member.backend for member in seen] == ["http://one", None]
