"""What a tribunal refuses, and who sits on its bench."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from scaleinfer import ConfigError
from scaleinfer.patterns import Opinion, Role, tribunal
from scaleinfer.patterns._tribunal import Critique, Round, _bench

pytestmark = pytest.mark.anyio


class Grade(BaseModel):
    grade: str


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"judges": 0}, "at least one judge"),
        ({"judges": []}, "at least one judge"),
        ({"judges": [3]}, "a Role or a string"),
        ({"judges": [Role("a"), Role("a")]}, "the same name"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"quorum": 4}, "quorum is 1 to the number of judges"),
        ({"accept": "some"}, "'some' is unknown"),
        ({"accept": 1.5}, "a share above 0"),
        ({"verdict": Grade}, "no field 'accept'"),
        ({"draft": 3}, "draft must be a function"),
        ({"draft": "no field"}, "names no field"),
    ],
)
async def test_what_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"draft": "{}", "base_url": "http://x", **options}
    with pytest.raises(ConfigError, match=words):
        await tribunal(["a"], **given)


async def test_judges_have_names_and_instructions_of_their_own() -> None:
    bench = _bench([Role(), "novelty", Role("strict", system="Be strict.")])
    assert [judge.name for judge in bench] == ["judge 1", "novelty", "strict"]
    assert len({judge.system for judge in _bench(3)}) == 3
    assert bench[2].system == "Be strict."


async def test_a_rounds_score_is_the_mean_of_those_given() -> None:
    critiques = (
        Critique("a", Opinion(critique="", score=4, accept=True)),
        Critique("b", Opinion(critique="", score=7, accept=True)),
        Critique("c", error=ConfigError("gone")),
        Critique("d", Grade(grade="A")),
    )
    assert Round("text", critiques, accepted=True).score == 5.5
    assert Round("text", critiques[2:], accepted=True).score is None
