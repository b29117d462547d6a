"""What a pipeline refuses, and what its stages are called."""

from __future__ import annotations

from typing import Any

import pytest

from scaleinfer import ConfigError
from scaleinfer.patterns import Stage, pipeline
from scaleinfer.patterns._pipeline import _named
from scaleinfer.patterns._roles import Scope
from scaleinfer.prompts import Template


def tidy(item: Any) -> str:
    return str(item)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "at least one"),
        ("Say {}", "needs a list"),
        (Stage("Say {}"), "needs a list"),
        ([Stage("{}", "a"), Stage("{}", "a")], "two stages have the name 'a'"),
        ([3], "must be a function"),
        (["no field"], "names no field"),
        ([Stage.call("text")], "must be a function"),  # type: ignore[arg-type] # that is the point
    ],
)
async def test_what_is_refused_at_once(stages: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        await pipeline(["a"], stages, base_url="http://x")


def test_stages_are_called_by_their_functions_or_numbers() -> None:
    stages = ["{}", tidy, Stage(tidy), Stage.keep(lambda item: True), Stage("{}", "last")]
    names = [stage.name for stage in _named(stages)]
    assert names == ["stage 1", "tidy", "stage 3", "stage 4", "last"]


class Paper:
    title = "On growth"


@pytest.mark.parametrize(
    ("template", "item", "expected"),
    [
        ("{title}: {draft}", {"title": "On growth"}, "On growth: text"),
        ("{title}: {draft}", Paper(), "On growth: text"),
        ("{item}: {draft}", "On growth", "On growth: text"),
        ("{text}: {draft}", "On growth", "On growth: text"),
        ("{}: {draft}", "On growth", "On growth: text"),
        ("{item}: {draft}", 3, "3: text"),
        ("{draft}", {"draft": "the item's own"}, "text"),
    ],
)
def test_templates_name_fields_and_what_came_before(
    template: str, item: Any, expected: str
) -> None:
    assert Template(template)(Scope(item, {"draft": "text"})) == expected


def test_a_name_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(Exception, match=r"does not have.*draft, title"):
        Template("{author}")(Scope({"title": "On growth"}, {"draft": "text"}))
