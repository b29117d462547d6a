"""Typed answers against servers that enforce schemas, refuse them, ignore them or answer badly."""

from __future__ import annotations

import json
from datetime import date  # noqa: TC003 - pydantic needs it at run time
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel, Field

from scaleinfer import Prompt, Retry, SchemaError, parallel_map
from scaleinfer.testing import SimulatedServer

if TYPE_CHECKING:
    from scaleinfer.testing import RequestView

pytestmark = pytest.mark.anyio

QUIET: dict[str, Any] = {"progress": False}


class Phase(Enum):
    SOLID = "solid"
    LIQUID = "liquid"


class Author(BaseModel):
    name: str
    born: date | None


class Paper(BaseModel):
    title: str
    phase: Phase
    kind: Literal["theory", "experiment"]
    authors: list[Author] = Field(max_length=3)
    counts: dict[str, int] = {}


class Soluble(BaseModel):
    soluble: bool


GOOD = '{"soluble": true}'


async def test_values_are_typed_and_the_server_is_asked_for_the_schema(
    server: SimulatedServer,
) -> None:
    results = await parallel_map(
        range(20), "Paper {}", base_url=server.base_url, schema=Paper, **QUIET
    )
    assert all(isinstance(value, Paper) for value in results.values)
    assert all(isinstance(value.phase, Phase) for value in results.values)
    assert results.stats.calls == 20
    body = json.loads(server.ledger.requests[0].body or b"")
    assert body["response_format"]["json_schema"]["name"] == "Paper"


@pytest.mark.parametrize("how", ["refuse", "ignore"])
async def test_a_server_without_schemas_is_told_in_words(how: Any) -> None:
    def answer(view: RequestView) -> str:
        told = "JSON schema" in json.dumps(view.messages)
        return f"Sure:\n```json\n{GOOD}\n```" if told else "Yes, it is."

    async with SimulatedServer(json_schema=how, answer=answer, keep_bodies=True) as server:
        results = await parallel_map(
            range(20),
            "Is {} soluble?",
            base_url=server.base_url,
            schema=Soluble,
            concurrency=4,
            **QUIET,
        )
        assert results.values == [Soluble(soluble=True)] * 20
        # Refusals come to those in flight at once; who ignores it is asked again each time.
        assert server.ledger.arrived <= (24 if how == "refuse" else 40)


async def test_a_bad_answer_is_repaired_by_showing_the_error() -> None:
    def answer(view: RequestView) -> str:
        if view.attempt == 1:
            return '{"soluble": "perhaps"}'
        said = view.messages[-1]["content"]
        assert "soluble: " in said
        assert view.messages[-2] == {"role": "assistant", "content": '{"soluble": "perhaps"}'}
        return GOOD

    async with SimulatedServer(answer=answer) as server:
        (result,) = await parallel_map(
            ["Ice?"], "{}", base_url=server.base_url, schema=Soluble, **QUIET
        )
        assert result.value == Soluble(soluble=True)
        assert result.attempts == result.usage.requests == 2
        assert server.ledger.asked() == {"Ice?": 2}


@pytest.mark.parametrize("repairs", [0, 1, 2])
async def test_a_schema_that_is_never_satisfied(repairs: int) -> None:
    async with SimulatedServer(answer=lambda view: "I do not know") as server:
        results = await parallel_map(
            ["Ice?", "Salt?"],
            "{}",
            base_url=server.base_url,
            schema=Soluble,
            retry=Retry(repairs=repairs),
            **QUIET,
        )
        assert server.ledger.asked() == {"Ice?": 1 + repairs, "Salt?": 1 + repairs}
    for result in results:
        assert not result.ok
        assert isinstance(result.error, SchemaError)
        assert result.error.text == result.text == "I do not know"
        assert result.value is None
        assert result.attempts == 1 + repairs
        assert "does not fit Soluble" in str(result.error)
        assert "larger model" in str(result.error)
    assert results.texts == [None, None]


async def test_a_run_whose_answers_never_fit_is_stopped() -> None:
    async with SimulatedServer(answer=lambda view: "no") as server:
        results = await parallel_map(
            range(500),
            "{}",
            base_url=server.base_url,
            schema=Soluble,
            retry=Retry(repairs=0),
            concurrency=4,
            **QUIET,
        )
        assert 50 <= server.ledger.arrived < 70
    assert "does not fit Soluble" in results.stopped


async def test_a_cut_answer_says_so(server: SimulatedServer) -> None:
    (result,) = await parallel_map(
        ["x"],
        "{}",
        base_url=server.base_url,
        schema=Paper,
        sampling={"max_tokens": 3},
        **QUIET,
    )
    assert result.finish_reason == "length"
    assert "Raise max_tokens" in str(result.error)
    (result,) = await parallel_map(
        ["x" * 100], "{}", base_url=server.base_url, sampling={"max_tokens": 3}, **QUIET
    )
    assert result.ok
    assert result.finish_reason == "length"


async def test_questions_with_schemas_of_their_own(server: SimulatedServer) -> None:
    results = await parallel_map(
        range(5),
        lambda item: {"paper": Prompt(f"P{item}", schema=Paper), "soluble": f"S{item}"},
        base_url=server.base_url,
        schema=Soluble,
        **QUIET,
    )
    for value in results.values:
        assert isinstance(value["paper"], Paper)
        assert isinstance(value["soluble"], Soluble)
    frame = results.to_pandas()
    assert len(frame) == 5
